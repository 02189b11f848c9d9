"""The command and `qwen25vl.batch`, with the built-in model in this process and with a server."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from document_files import draw_folder, page, poison, read_lines
from live_server import Live

import qwen25vl
from qwen25vl.cli import main

QUESTION = "What is in the picture?"


@pytest.mark.parametrize(
    ("number", "num_poison"), [(60, 10), pytest.param(300, 30, marks=pytest.mark.slow)]
)
def test_each_page_once_and_poison_beside(
    tmp_path: Path, demo: qwen25vl.VisionLanguageModel, number: int, num_poison: int
) -> None:
    """A page without a line, or with two; one bad file that ends the job or takes a good one with
    it; a failure without its reason."""
    folder = tmp_path / "in"
    draw_folder(folder, number - num_poison)
    expected = {}
    for each in range(num_poison // 10):
        (folder / f"poison{each}").mkdir()
        expected |= {
            str(folder / f"poison{each}" / name): kind
            for name, kind in poison(folder / f"poison{each}").items()
        }
    output = tmp_path / "out.jsonl"
    results = list(qwen25vl.batch(folder, QUESTION, model=demo, output=output, max_new_tokens=4))
    lines = read_lines(output)
    assert len(results) == len(lines) == number
    failed = {line["source"]: line["error"]["kind"] for line in lines if line["error"]}
    assert failed == expected
    assert all(
        line["error"]["message"].startswith(line["source"]) for line in lines if line["error"]
    )
    assert len({(line["source"], line["page"]) for line in lines}) == number
    assert [line["source"] for line in lines] == sorted(
        (line["source"] for line in lines), key=lambda name: (Path(name).parent, Path(name).name)
    )
    assert {each.key: each.text for each in results} == {
        each["key"]: each["text"] for each in lines
    }
    for line in [each for each in lines if not each["error"]][::17]:
        pages = None if line["page"] is None else line["page"]
        answer = demo.ask(QUESTION, [line["source"]], pages=pages, max_new_tokens=4)
        assert (line["text"], line["finish_reason"]) == (answer.text, answer.finish_reason)


def test_server_and_process_write_the_same(
    tmp_path: Path, demo: qwen25vl.VisionLanguageModel, live: Live
) -> None:
    """The same question about the same page in other words: a file sent whole, or with another
    page of it, or without its options."""
    draw_folder(tmp_path / "in", 20)
    texts = []
    for asked in ({"model": demo}, {"server": [live.url, live.url]}):
        results = qwen25vl.batch(tmp_path / "in", QUESTION, max_new_tokens=4, **asked)  # type: ignore[arg-type]
        texts.append({(each.source, each.page): (each.text, each.error) for each in results})
    assert len(texts[0]) == 20
    assert texts[0] == texts[1]


def test_command_codes_and_summary(
    tmp_path: Path, live: Live, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script that goes on because the job's code says that all is well."""
    draw_folder(tmp_path / "in", 5)
    output, summary = tmp_path / "out.jsonl", tmp_path / "summary.json"
    words = ["batch", str(tmp_path / "in"), "--ask", QUESTION, "-o", str(output)]
    words += ["--server", live.url, "--max-new-tokens", "4", "--summary", str(summary)]
    before = signal.getsignal(signal.SIGTERM)
    assert main(words) == 0
    assert main(words) == 2
    assert "is there already" in capsys.readouterr().err
    (tmp_path / "in" / "zz.png").write_bytes(b"")
    assert main([*words, "--resume"]) == 3
    assert main([*words, "--resume"]) == 3
    assert signal.getsignal(signal.SIGTERM) == before
    told = json.loads(summary.read_text())
    assert (told["pages"], told["skipped"], told["failed_before"]) == (0, 6, 1)
    assert main([*words[:-1], str(tmp_path), "--max-attempts", "0", "--resume"]) == 2
    assert "1 failed" in capsys.readouterr().err


def command(words: list[str], **how: Any) -> subprocess.Popen[str]:
    program = [sys.executable, "-m", "qwen25vl", "batch", *words]
    return subprocess.Popen(program, stderr=subprocess.PIPE, text=True, **how)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, live: Live, number: signal.Signals) -> None:
    """Ctrl-C that loses what was answered, or leaves half a line or a lock behind."""
    draw_folder(tmp_path / "in", 60)
    output = tmp_path / "out.jsonl"
    words = [str(tmp_path / "in"), "--ask", QUESTION, "-o", str(output), "--server", live.url]
    job = command([*words, "--max-in-flight", "2"])
    deadline = time.monotonic() + 60
    while not output.exists() or not output.stat().st_size:
        assert job.poll() is None, job.stderr and job.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    job.send_signal(number)
    told = job.communicate(timeout=60)[1]
    assert job.returncode == 130
    assert "--resume goes on" in told
    assert "Traceback" not in told
    kept = read_lines(output)
    assert 0 < len(kept) < 60
    assert not (tmp_path / "out.jsonl.running").exists()


def test_no_room_for_the_output(tmp_path: Path, live: Live) -> None:
    """A full disk told as a fault of the pages, or as a traceback."""
    draw_folder(tmp_path / "in", 12)
    output = tmp_path / "out.jsonl"
    words = [str(tmp_path / "in"), "--ask", QUESTION, "-o", str(output), "--server", live.url]
    words += ["--max-new-tokens", "4"]
    limit = 3000
    job = command(
        words, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    told = job.communicate(timeout=60)[1]
    assert job.returncode == 1
    assert "cannot be written: File too large" in told
    assert "Traceback" not in told
    kept = read_lines(output)
    assert 0 < len(kept) < 12
    assert main(["batch", *words, "--resume"]) == 0
    assert len(read_lines(output)) == 12


def test_pictures_in_memory_and_messages(
    demo: qwen25vl.VisionLanguageModel, tmp_path: Path
) -> None:
    """A script has its pictures in memory as often as in files; all forms get the same answer."""
    picture = page(3)
    picture.save(tmp_path / "a.png")
    content = [{"type": "image", "image": "a.png"}, {"type": "text", "text": QUESTION}]
    messages = [{"role": "user", "content": content}]
    lines = tmp_path / "lines.jsonl"
    lines.write_text(
        json.dumps({"id": "one", "messages": messages, "max_tokens": 3})
        + "\n" + json.dumps(messages) + "\nnonsense\n"
    )  # fmt: skip
    data = (tmp_path / "a.png").read_bytes()
    given = [picture, data, tmp_path / "a.png", lines]
    results = list(qwen25vl.batch(given, QUESTION, model=demo, max_new_tokens=4))
    by_name = {each.custom_id or each.source: each for each in results}
    assert len(by_name) == 6
    answer = demo.ask(QUESTION, [picture], max_new_tokens=4).text
    texts = [by_name[name].text for name in ("input 1", "input 2", str(tmp_path / "a.png"))]
    assert texts == [answer] * 3
    assert by_name[f"{lines}:2"].text == answer
    assert by_name["one"].num_tokens[1] == 3
    error = by_name[f"{lines}:3"].error
    assert error is not None
    assert "is no request" in error.message


def test_leaving_early_ends_the_job(demo: qwen25vl.VisionLanguageModel, tmp_path: Path) -> None:
    """A loop that breaks leaves a thread behind that goes on with thousands of pages."""
    import threading

    draw_folder(tmp_path / "in", 20)
    for _ in qwen25vl.batch(tmp_path / "in", QUESTION, model=demo, max_new_tokens=4):
        break
    names = [thread.name for thread in threading.enumerate()]
    assert "batch" not in names


def test_scans_in_tiff(demo: qwen25vl.VisionLanguageModel, tmp_path: Path) -> None:
    """Scanners write TIFF, a page a frame, which no server reads: all but the first were lost."""
    pages = [page(number) for number in (1, 2, 3)]
    pages[0].save(tmp_path / "scan.tif", save_all=True, append_images=pages[1:])
    page(4).save(tmp_path / "single.tiff")
    (tmp_path / "cut.tif").write_bytes((tmp_path / "scan.tif").read_bytes()[:3000])
    results = list(qwen25vl.batch(tmp_path, QUESTION, model=demo, max_new_tokens=4))
    found = {(Path(each.source).name, each.page): each for each in results}
    assert [found[("scan.tif", number)].text for number in (1, 2, 3)] == [
        demo.ask(QUESTION, [picture], max_new_tokens=4).text for picture in pages
    ]
    answer = demo.ask(QUESTION, [page(4)], max_new_tokens=4)
    assert found[("single.tiff", None)].text == answer.text
    broken = [each.error for each in results if "cut" in each.source]
    assert {error.kind for error in broken if error} == {"broken"}


PROGRAM = """
import sys, qwen25vl
options = {"max_new_tokens": 4, "max_in_flight": 4}
for result in qwen25vl.batch(sys.argv[1], "What?", output=sys.argv[2], **options):
    raise SystemError("of the script itself")
"""


@pytest.mark.slow
def test_script_that_fails(tmp_path: Path) -> None:
    """At the end of a program nothing can be started any more: all pages that are under way then
    were written down as failed."""
    draw_folder(tmp_path / "in", 40)
    output = tmp_path / "out.jsonl"
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "in"), str(output)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert "of the script itself" in done.stderr
    assert "a request failed" not in done.stderr
    lines = read_lines(output)
    assert 0 < len(lines) < 40
    assert all(line["error"] is None for line in lines)
