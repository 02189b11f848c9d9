"""Requests that schemathesis makes from /openapi.json, valid and invalid ones: `make test-fuzz`."""

import os
import re
import subprocess
import sys

import pytest

CASES = os.environ.get("QWEN25VL_FUZZ_CASES", "80")  # of each route
CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance"
CHECKS += ",response_schema_conformance"


@pytest.mark.slow
def test_no_request_breaks_the_server_or_its_description(live):
    """0 replies of 500 and more, 0 replies off their schema."""
    pytest.importorskip("schemathesis")
    command = [
        sys.executable, "-m", "schemathesis.cli", "run", f"{live.url}/openapi.json",
        "--checks", CHECKS, "--mode", "all", "--phases", "fuzzing", "--max-examples", CASES,
        "--seed", "1", "--generation-database", "none", "--request-timeout", "60", "--no-color",
        "--suppress-health-check", "all", "--continue-on-failure",
    ]  # fmt: skip
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-6000:] + run.stderr[-2000:]
    found = re.search(r"(\d+) generated", run.stdout)
    assert found is not None, run.stdout[-2000:]
    print(f"{found[1]} requests")
    assert live.http.get("/health").status_code == 200
    assert not live.service.num_open
