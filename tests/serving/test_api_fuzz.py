"""Requests that schemathesis makes, valid and invalid ones, from /openapi.json and from the
specification of OpenAI: `make test-fuzz`."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from live_server import Live

import qwen25vl
from qwen25vl.serving.settings import ServerSettings

CASES = os.environ.get("QWEN25VL_FUZZ_CASES", "80")  # of each route
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"
CHECKS += ",response_schema_conformance"
SPEC = Path(__file__).with_name("openai_spec") / "spec.json"


def fuzz(*options: str) -> None:
    """0 replies of 500 and more, 0 replies off their schema."""
    pytest.importorskip("schemathesis")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", *options,
        "--checks", CHECKS, "--mode", "all", "--phases", "fuzzing", "--max-examples", CASES,
        "--seed", "1", "--generation-database", "none", "--request-timeout", "60", "--no-color",
        "--suppress-health-check", "all", "--continue-on-failure",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    found = re.search(r"(\d+) generated", run.stdout)
    assert found is not None, run.stdout[-2000:]
    print(f"{found[1]} requests")


@pytest.fixture(scope="module")
def live(demo: qwen25vl.VisionLanguageModel) -> Iterator[Live]:
    """One that answers whatever model is named, so that most requests are answered."""
    server = Live(ServerSettings(port=0, any_model_name=True, default_max_tokens=16), demo)
    yield server
    server.close()


def with_errors(spec: dict[str, Any]) -> dict[str, Any]:
    """OpenAI's specification with its own schema of errors for every status but 200. It has none
    for most, and for two the schema of what its errors hold, which its clients could not read.
    Streams are left to `test_openai_schemas`: one of three is forgotten there, and the schemas of
    the others are those of what their events hold."""
    schema = {"$ref": "#/components/schemas/ErrorResponse"}
    error = {"description": "An error.", "content": {"application/json": {"schema": schema}}}
    for operations in spec["paths"].values():
        for operation in operations.values():
            good = operation["responses"]["200"]
            if "requestBody" in operation:
                good["content"]["text/event-stream"] = {}
            operation["responses"] = {"200": good, "default": error}
    return spec


@pytest.mark.slow
def test_no_request_breaks_the_server_or_its_description(live):
    fuzz(f"{live.url}/openapi.json")
    assert live.http.get("/health").status_code == 200
    assert not live.service.num_open


@pytest.mark.slow
def test_requests_of_the_specification_of_openai(live, tmp_path):
    file = tmp_path / "openai.json"
    file.write_text(json.dumps(with_errors(json.loads(SPEC.read_text("utf-8")))))
    fuzz(str(file), "--url", f"{live.url}/v1")
    assert live.http.get("/health").status_code == 200
    assert not live.service.num_open
