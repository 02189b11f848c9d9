"""Replicas: equal answers from several processes, also when one of them is killed."""

import os
import signal
from pathlib import Path

import pytest
from document_files import draw_folder, pictures, read_lines

import qwen25vl
from qwen25vl.cli import main
from qwen25vl.documents.batch import Target, find_backend, run_job
from qwen25vl.documents.batch_job import JobLimits
from qwen25vl.documents.inputs import list_inputs
from qwen25vl.documents.plan import make_plan
from qwen25vl.documents.replicas import ReplicaBackend
from qwen25vl.errors import UsageError

QUESTION = "What is in the picture?"


@pytest.mark.slow
def test_equal_to_one_process(tmp_path: Path) -> None:
    """What a replica answers must not depend on its threads or on which one it is."""
    draw_folder(tmp_path / "in", 6)
    for name, more in (("one", []), ("two", ["--replicas", "2"])):
        output = str(tmp_path / f"{name}.jsonl")
        arguments = ["batch", str(tmp_path / "in"), "--ask", QUESTION, "-o", output]
        assert main([*arguments, "--max-new-tokens", "8", *more]) == 0
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


@pytest.mark.slow
def test_killed_replica(tmp_path: Path) -> None:
    """A replica that dies takes no page with it, and another one takes its place."""
    folder = pictures(tmp_path / "in", 24)
    output = tmp_path / "out.jsonl"
    backend, _ = find_backend(None, [], None, 2)
    assert isinstance(backend, ReplicaBackend)
    plan = make_plan(identity={}, ask=QUESTION, options={"max_new_tokens": 8})
    limits = JobLimits(max_in_flight=6)
    before = None
    results = run_job(list_inputs([str(folder)]), plan, backend, Target(output), limits)
    for found, _ in enumerate(results, 1):
        process = backend.replicas[0].process
        if found == 3 and process is not None:
            before = process.pid
            os.kill(process.pid, signal.SIGKILL)
    lines = read_lines(output)
    assert [line["error"] for line in lines] == [None] * 24
    assert len({line["source"] for line in lines}) == 24
    assert before is not None


def test_wrong_calls() -> None:
    with pytest.raises(UsageError, match="replicas is 0; expected a number of at least 1"):
        qwen25vl.batch([b""], "?", replicas=0)
    with pytest.raises(UsageError, match="replicas are the server's own"):
        qwen25vl.batch([b""], "?", replicas=2, server="http://127.0.0.1:1")
