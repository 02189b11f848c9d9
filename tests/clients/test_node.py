"""openai-node and Anthropic's SDK for node, in a process of their own."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
from live_server import NAME, QUESTION, data_url, scene

FOLDER = Path(__file__).parents[2] / "build" / "clients"
PROGRAM = Path(__file__).with_name("node_client.mjs")


@pytest.mark.skipif(shutil.which("node") is None, reason="there is no node")
@pytest.mark.skipif(
    not (FOLDER / "node_modules" / "openai").is_dir(), reason="openai is not installed by npm"
)
def test_node(live, expected):
    """Its helper checks finish_reason and role of every choice."""
    argv = ["node", str(PROGRAM), str(FOLDER), live.url, NAME, data_url(scene()), QUESTION]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["models"] == [NAME]
    assert found["whole"] == found["streamed"] == found["helper"] == expected
    assert found["anthropic"] == expected
    assert found["usage"] == found["helperUsage"] > 0
    assert found["error"] == ["BadRequestError", 400, "temperature"]
