"""The output file: whole lines, found again, never two of one input."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from document_files import BUSY, EchoBackend, page, pictures, read_lines, work

from qwen25vl.documents.batch import Target
from qwen25vl.documents.batch_job import JobLimits
from qwen25vl.documents.journal import OutputError
from qwen25vl.errors import UsageError


def again(output: Path, **values: Any) -> Target:
    return Target(output, resume=True, **values)


def test_order_and_equal_bytes(tmp_path: Path) -> None:
    """Answers come in any order; two runs that differ only in that wrote different files."""
    folder = pictures(tmp_path / "in", 9)
    outputs = []
    for number, slow in enumerate(("00.png", "04.png")):
        output = tmp_path / f"{number}.jsonl"
        work([str(folder)], EchoBackend({slow: [0.05]}), Target(output))
        outputs.append(output.read_bytes())
    assert outputs[0] == outputs[1]
    names = [Path(line["source"]).name for line in read_lines(tmp_path / "0.jsonl")]
    assert names == sorted(names)
    output = tmp_path / "2.jsonl"
    work([str(folder)], EchoBackend({"00.png": [0.05]}), Target(output, order="finished"))
    lines = read_lines(output)
    assert Path(lines[0]["source"]).name != "00.png"
    assert all(line["seconds"] >= 0 and line["attempts"] == 1 for line in lines)


@pytest.mark.parametrize("torn", [b'{"key": "half', b"\0" * 50, b"\0\0\n"])
def test_torn_line(tmp_path: Path, torn: bytes) -> None:
    """Half a line, or the zeros that a power failure leaves, made the file unreadable or cost the
    line that was written after it."""
    folder, output = pictures(tmp_path / "in", 5), tmp_path / "out.jsonl"
    work([str(folder)], EchoBackend(), Target(output))
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:3]) + torn)
    backend = EchoBackend()
    work([str(folder)], backend, again(output))
    assert sorted(Path(name).name for name in backend.asked) == ["03.png", "04.png"]
    assert output.read_bytes() == whole


def test_only_new_settings_and_inputs_are_asked(tmp_path: Path) -> None:
    """An answer under other settings taken for the one that is wanted; the file itself changed."""
    folder, output = pictures(tmp_path / "in", 3), tmp_path / "out.jsonl"
    work([str(folder)], EchoBackend(), Target(output))
    with pytest.raises(UsageError, match="is there already"):
        work([str(folder)], EchoBackend(), Target(output))
    with pytest.raises(UsageError, match=r"max_tokens was 4096 and is 7"):
        work([str(folder)], EchoBackend(), again(output), options={"max_new_tokens": 7})
    with pytest.raises(UsageError, match=r"questions was .*What\?.* and is .*Who\?"):
        work([str(folder)], EchoBackend(), again(output), ask="Who?")
    page(20).save(folder / "01.png")
    page(21).save(folder / "03.png")
    backend = EchoBackend()
    work([str(folder)], backend, again(output))
    assert sorted(Path(name).name for name in backend.asked) == ["01.png", "03.png"]
    assert [Path(line["source"]).name for line in read_lines(output)] == [
        "00.png", "01.png", "02.png", "03.png"
    ]  # fmt: skip


def test_other_inputs_keep_their_lines(tmp_path: Path) -> None:
    """To go on with further inputs must not cost the answers to the earlier ones."""
    output = tmp_path / "out.jsonl"
    first, second = pictures(tmp_path / "a", 2), pictures(tmp_path / "b", 2)
    work([str(first)], EchoBackend(), Target(output))
    work([str(second)], EchoBackend(), again(output))
    assert [Path(line["source"]).parent.name for line in read_lines(output)] == list("aabb")


def test_failed_ones_are_asked_again_only_on_request(tmp_path: Path) -> None:
    """A line for the failure and another for the answer; or hours for what fails each time."""
    folder, output = pictures(tmp_path / "in", 3), tmp_path / "out.jsonl"
    limits = JobLimits(max_attempts=1)
    work([str(folder)], EchoBackend({"01": [BUSY]}), Target(output), limits)
    backend = EchoBackend()
    assert work([str(folder)], backend, again(output)) == []
    assert not backend.asked
    work([str(folder)], backend, again(output), JobLimits(retry_failed=True))
    lines = read_lines(output)
    assert [line["error"] for line in lines] == [None] * 3


def test_two_jobs_on_one_file(tmp_path: Path) -> None:
    """Two jobs that append to one file write every line twice."""
    folder, output = pictures(tmp_path / "in", 2), tmp_path / "out.jsonl"
    work([str(folder)], EchoBackend(), Target(output))
    program = (
        "import fcntl, sys; file = open(sys.argv[1]); fcntl.flock(file, fcntl.LOCK_EX); "
        "print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, f"{output}.job"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(UsageError, match="another job writes"):
            work([str(folder)], EchoBackend(), again(output))
    finally:
        holder.communicate(b"")
    assert work([str(folder)], EchoBackend(), again(output)) == []


def test_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a line at the end of a full disk, and a job that goes on as if it were written."""
    folder, output = pictures(tmp_path / "in", 6), tmp_path / "out.jsonl"
    write, room = os.write, [1500]

    def limited(descriptor: int, data: bytes) -> int:
        if not str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith(".jsonl"):
            return write(descriptor, data)
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(descriptor, data[: room[0]])
        room[0] -= done
        return done

    monkeypatch.setattr(os, "write", limited)
    with pytest.raises(OutputError, match=r"No space left on device; \d results are kept"):
        work([str(folder)], EchoBackend(), Target(output))
    monkeypatch.undo()
    kept = read_lines(output)
    assert 0 < len(kept) < 6
    backend = EchoBackend()
    work([str(folder)], backend, again(output))
    assert len(backend.asked) == 6 - len(kept)
    assert len(read_lines(output)) == 6


def test_strange_file_is_left_alone(tmp_path: Path) -> None:
    """A file of somebody else must not be rewritten because it was named by mistake."""
    folder, output = pictures(tmp_path / "in", 1), tmp_path / "notes.jsonl"
    output.write_text('{"my": "notes"}\n')
    with pytest.raises(UsageError, match="a line that no job wrote"):
        work([str(folder)], EchoBackend(), again(output))
    assert json.loads(output.read_text()) == {"my": "notes"}
