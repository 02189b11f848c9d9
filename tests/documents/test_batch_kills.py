"""SIGKILL at any moment, then --resume: the same bytes as without."""

import os
import random
import signal
import time
from pathlib import Path

import pytest
from document_files import draw_folder, read_lines
from live_server import NAME, Live

from qwen25vl.documents.batch import Target, run_job
from qwen25vl.documents.batch_job import JobLimits
from qwen25vl.documents.inputs import list_inputs
from qwen25vl.documents.plan import make_plan
from qwen25vl.documents.remote import RemoteBackend


def run(folder: Path, output: Path, url: str, *, resume: bool) -> None:
    plan = make_plan(
        identity={"model": NAME}, ask="What is it?", model=NAME, options={"max_new_tokens": 4}
    )
    backend, target = RemoteBackend([url]), Target(output, resume=resume)
    limits = JobLimits(max_in_flight=4)
    for _ in run_job(list_inputs([str(folder)]), plan, backend, target, limits):
        pass


def kill_once(folder: Path, output: Path, url: str, num_bytes: int, seconds: float) -> bool:
    """Kill a job so many seconds after its output grew by so many bytes; whether it was killed
    before it was done. Forking saves the imports."""
    size = output.stat().st_size if output.exists() else 0
    child = os.fork()
    if not child:
        try:
            run(folder, output, url, resume=True)
        finally:
            os._exit(0)
    deadline = time.monotonic() + 30
    while not os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT):
        if output.exists() and output.stat().st_size >= size + num_bytes:
            break
        assert time.monotonic() < deadline
        time.sleep(0.002)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("number", [6, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment(tmp_path: Path, live: Live, number: int) -> None:
    """A page that is lost or there twice after a crash, or answers that differ from those of a job
    that nobody disturbed."""
    # pictures only: pages of documents are counted by processes, which start slowly
    num_pages = 24 if number == 6 else 200
    draw_folder(tmp_path / "in", num_pages, num_pages=10**9)
    run(tmp_path / "in", tmp_path / "whole.jsonl", live.url, resume=False)
    line = (tmp_path / "whole.jsonl").stat().st_size / num_pages
    draws = random.Random(number)
    output = tmp_path / "out.jsonl"
    kills = 0
    for _ in range(number):
        num_bytes = int(draws.uniform(0, 1.5 * line * num_pages / number))
        kills += kill_once(tmp_path / "in", output, live.url, num_bytes, draws.uniform(0, 0.05))
    run(tmp_path / "in", output, live.url, resume=True)
    assert kills >= 2
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    sources = [line["source"] for line in read_lines(output)]
    assert len(sources) == len(set(sources)) == num_pages
    assert not (tmp_path / "out.jsonl.running").exists()
