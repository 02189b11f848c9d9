"""A job's order of work: who is tried again, who is alone, how much is under way."""

import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from document_files import BUSY, EchoBackend, draw_folder, page, pictures, read_lines, work

from qwen25vl.documents.batch import Target, run_job
from qwen25vl.documents.batch_job import JobLimits
from qwen25vl.documents.failures import Failure
from qwen25vl.documents.inputs import list_inputs
from qwen25vl.documents.plan import make_plan
from qwen25vl.documents.suspects import Suspects
from qwen25vl.errors import UsageError

BROKEN = Failure("broken", "the picture is damaged", 400, "image_parse_error")


def test_what_may_pass_is_tried_again_and_alone_at_last(tmp_path: Path) -> None:
    """A picture that takes all memory fails its neighbours as well if it is tried among them each
    time; what is damaged stays so and is not tried again."""
    folder = pictures(tmp_path / "in", 12)
    backend = EchoBackend({"03.png": [BUSY, BUSY, BUSY], "05.png": [BROKEN], "07.png": [BUSY]})
    results = {Path(each.source).name: each for each in work([str(folder)], backend)}
    assert len(results) == 12
    assert results["03.png"].error == BUSY
    assert results["03.png"].attempts == 3
    assert results["05.png"].error == BROKEN
    assert results["05.png"].attempts == 1
    assert results["07.png"].error is None
    assert results["07.png"].attempts == 2
    assert backend.company[-1] == (str(folder / "03.png"), 1)
    assert 1 < backend.most <= 4


def test_circles_are_broken_by_other_sampling(tmp_path: Path) -> None:
    """An answer in circles is the same each time when it is asked for in the same way."""
    folder = pictures(tmp_path / "in", 2)
    backend = EchoBackend({"00.png": ["circles", "circles"], "01.png": ["circles"] * 3})
    results = work([str(folder)], backend, limits=JobLimits(max_in_flight=1))
    by_name = {Path(each.source).name: each for each in results}
    assert by_name["00.png"].error is None
    assert by_name["01.png"].error is not None
    assert by_name["01.png"].error.kind == "repetition"
    penalties = [body.get("repetition_penalty") for body in backend.bodies]
    assert penalties == [None, 1.05, None, 1.05, 1.1, 1.1]


def test_deadline(tmp_path: Path) -> None:
    """One page that hangs holds the whole job."""
    folder = pictures(tmp_path / "in", 3)
    limits = JobLimits(max_attempts=2, deadline=0.05)
    results = work([str(folder)], EchoBackend({"01.png": [9.0, 9.0]}), limits=limits)
    failed = [each for each in results if each.error is not None]
    assert [each.error.kind for each in failed if each.error] == ["deadline"]


def test_window_of_bytes(tmp_path: Path) -> None:
    """Sixteen large pages at once take sixteen times the memory of one."""
    folder = pictures(tmp_path / "in", 8)
    backend = EchoBackend()
    one = int(56 * 56 * 15.0) + (folder / "00.png").stat().st_size
    work([str(folder)], backend, limits=JobLimits(max_in_flight=8, window_bytes=int(2.5 * one)))
    assert backend.most == 2
    backend = EchoBackend()
    results = work([str(folder)], backend, limits=JobLimits(window_bytes=1))
    assert (backend.most, len(results)) == (1, 8)


def test_memory_is_flat(tmp_path: Path) -> None:
    """A job that keeps its results or its pages runs out of memory after some thousand."""
    page(1).save(tmp_path / "long.pdf")
    peaks = []
    for number in (200, 4000):
        backend = EchoBackend(num_pages=number, seconds=0)
        backend.asked = backend.bodies = backend.company = Forgetful()  # type: ignore[assignment]
        target = Target(tmp_path / f"{number}.jsonl")
        plan = make_plan(identity={"model": "echo"}, ask="What?")
        tracemalloc.start()
        inputs = list_inputs([str(tmp_path / "long.pdf")])
        count = sum(1 for _ in run_job(inputs, plan, backend, target, JobLimits()))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert count == number == len(read_lines(tmp_path / f"{number}.jsonl"))
    assert (peaks[1] - peaks[0]) / 3800 < 900  # bytes for each further page: an entry of the index


class Forgetful(list[Any]):
    def append(self, one: object) -> None:
        return None


def test_pages_prompts_groups_and_markdown(tmp_path: Path) -> None:
    """Pages in another order than the document's, a lost page, or a document that is lost because
    one of its pages is."""
    (tmp_path / "in").mkdir()
    page(1).save(tmp_path / "in" / "doc.pdf")
    page(2).save(tmp_path / "in" / "one.png")
    backend = EchoBackend(
        {"page 1": [0.05, "```markdown\n# One\n```"], "page 2": [BROKEN], "page 3": ["three"]}
    )
    backend.behave["page 1"] = ["```markdown\n# One\n```"]
    output = tmp_path / "out.jsonl"
    target = Target(output, markdown=tmp_path / "md", is_grouped=True)
    results = work([str(tmp_path / "in")], backend, target)
    assert len(results) == 4
    groups = read_lines(output)
    assert [(each["num_pages"], each["num_failed"]) for each in groups] == [(3, 1), (1, 0)]
    assert [each["page"] for each in groups[0]["pages"]] == [1, 2, 3]
    assert "seconds" not in groups[0]["pages"][0]
    text = next((tmp_path / "md").rglob("doc.pdf.md")).read_text()
    assert text.startswith("# One\n\n<!-- page 2: broken: ")
    assert text.endswith("-->\n\nthree\n")

    backend = EchoBackend()
    results = work([str(tmp_path / "in" / "doc.pdf")], backend, pages="all")
    assert [each.page for each in results] == [None]
    backend = EchoBackend()
    several = {"who": "Who?", "when": "When?"}
    results = work([str(tmp_path / "in")], backend, ask=None, prompts=several)
    assert sorted((each.page or 0, each.prompt) for each in results) == sorted(
        (number, name) for number in range(4) for name in several
    )


def test_what_a_crash_leaves_behind(tmp_path: Path) -> None:
    """An input that ends the process ends every later run as well, unless it is remembered."""
    path = tmp_path / "running"
    for crashes in range(3):
        suspects = Suspects(path)
        suspects.open()
        assert suspects.crashes["bad"] == max(0, crashes - 1)
        assert suspects.keys == ({"bad"} if crashes else set())
        for key in ("good", "bad"):
            suspects.note("!" if crashes and key == "bad" else "+", key)
        suspects.over("good")
        del suspects  # no close: the process is gone
    suspects = Suspects(path)
    suspects.open()
    assert suspects.crashes["bad"] == 2
    suspects.over("bad")
    suspects.close()
    assert not path.exists()


def test_crash_is_written_down(tmp_path: Path) -> None:
    """After as many crashes as tries are allowed, the input is given up with a reason."""
    folder = pictures(tmp_path / "in", 3)
    output = tmp_path / "out.jsonl"
    key = next(each.key for each in work([str(folder)], EchoBackend()) if "01" in each.source)
    (tmp_path / "out.jsonl.running").write_text(f"+{key}\n*{key}\n*{key}\n!{key}\n")
    work([str(folder)], EchoBackend(), Target(output))
    lines = read_lines(output)
    assert [each["error"] and each["error"]["kind"] for each in lines] == [None, "crash", None]


def test_wrong_calls(tmp_path: Path) -> None:
    """A job that asks nothing, or that nothing is given to, would run for hours for nothing."""
    folder = pictures(tmp_path / "in", 1)
    for given, asked in (
        ([], {}),
        ([str(tmp_path / "nowhere.png")], {}),
        ([str(tmp_path / "*.tif")], {}),
        ([3], {}),
        ([str(folder)], {"ask": None}),
        ([str(folder)], {"ask": " "}),
        ([str(folder)], {"prompts": {"a": "b"}}),
        ([str(folder)], {"task": "poem"}),
        ([str(folder)], {"options": {"num_beams": 3}}),
        ([str(folder)], {"options": {"temperature": -1.0}}),
        ([str(folder)], {"options": {"max_new_tokens": 1.5}}),
        ([str(folder)], {"schema": {"type": "text"}}),
    ):
        with pytest.raises(UsageError):
            work(given, EchoBackend(), **asked)
    with pytest.raises(UsageError, match="max_attempts is 0"):
        work([str(folder)], EchoBackend(), limits=JobLimits(max_attempts=0))


def test_folder_of_several_kinds(tmp_path: Path) -> None:
    """The drawn folders of these tests hold as many pages as they say."""
    files = draw_folder(tmp_path / "in", 30)
    inputs = list_inputs([str(tmp_path / "in"), str(tmp_path / "in" / "001.jpg")])
    assert len(inputs.sources) == files
