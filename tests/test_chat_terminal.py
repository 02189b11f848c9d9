"""`qwen25vl chat` as a person meets it:
pasted text, words as in a shell, files that fail, a real terminal."""

import io
import os
import pty
import re
import select
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import qwen25vl
from qwen25vl.cli import main
from qwen25vl.cli.lines import split_sources
from qwen25vl.errors import ContextLengthError
from qwen25vl.vlm import Conversation, VisionLanguageModel

SHORT = ["--max-new-tokens", "5"]


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


@pytest.fixture
def loaded(vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> VisionLanguageModel:
    monkeypatch.setattr("qwen25vl.cli.opening.load", lambda *_, **__: vlm)
    return vlm


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures and clips, good and bad, in the working folder."""
    monkeypatch.chdir(tmp_path)
    frames = [Image.new("RGB", (56, 56), colour) for colour in ("red", "green", "blue")]
    for name in ("a b.png", "it's.png", "x[1].png", "c.png"):
        frames[0].save(name)
    for name in ("clip.gif", "other.gif"):
        frames[0].save(name, save_all=True, append_images=frames[1:], duration=500)
    Path("bad.mp4").write_bytes(b"no video at all" * 50)
    Path("bad.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    Image.new("RGB", (900, 2)).save("strip.png")  # can be opened, but no model sees it
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, list[str], int]]:
    """Each question with the names of its pictures and the number of its videos."""
    questions: list[tuple[str, list[str], int]] = []
    stream = Conversation.stream

    def recorded(
        self: Conversation, question: str, images: Any, videos: Any, **options: Any
    ) -> Any:
        questions.append((question, [image.filename for image in images], len(videos)))
        return stream(self, question, images, videos, **options)

    monkeypatch.setattr(Conversation, "stream", recorded)
    return questions


def talk(monkeypatch: pytest.MonkeyPatch, *lines: str, options: Sequence[str] = ()) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines) + "\n"))
    return main(["chat", "-m", "loaded", *SHORT, *options])


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        (r"a\ b.png", ["a b.png"]),
        ('"a b.png"', ["a b.png"]),
        ("'a b.png' c.png", ["a b.png", "c.png"]),
        ("a b.png", ["a b.png"]),
        ("it's.png", ["it's.png"]),
        (r"it\'s.png c.png", ["it's.png", "c.png"]),
        ("x[1].png", ["x[1].png"]),
        ("x[1].png c.png", ["x[1].png", "c.png"]),
        ("*.gif", ["clip.gif", "other.gif"]),
        ("~/c.png", ["HOME/c.png"]),
        ("none.png", ["none.png"]),
        ("~no-such-user/x.png", ["~no-such-user/x.png"]),
        ("it's none.png", ["it's", "none.png"]),
        ("https://example.org/a%20b.png?x=*&y='1", ["https://example.org/a%20b.png?x=*&y='1"]),
        ("data:image/png;base64,AA AA==", ["data:image/png;base64,AA AA=="]),
        ("# c.png", ["#", "c.png"]),
    ],
)
def test_words_as_a_shell_reads_them(
    typed: str, found: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`/image a\\ b.png`, as a terminal writes a file that is dragged into it, was not found."""
    monkeypatch.setenv("HOME", str(folder))
    assert split_sources(typed) == [name.replace("HOME", str(folder)) for name in found]


@pytest.mark.usefixtures("loaded", "folder")
def test_several_files_and_words_behind_commands(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`/quit now` and `/Reset please` were no commands, and every other mistake had no hint."""
    lines = ["/image a\\ b.png 'c.png'", "/IMAGE x[1].png", "What?", "/reset please", "And?"]
    assert talk(monkeypatch, *lines, "/quit now", "never") == 0
    assert asked == [("What?", ["a b.png", "c.png", "x[1].png"], 0), ("And?", [], 0)]
    assert capsys.readouterr().err == ""
    assert talk(monkeypatch, "/iamge c.png", "/qiut", "/dance", "/", "/etc/hosts is what?") == 2
    assert capsys.readouterr().err.splitlines()[:4] == [
        "qwen25vl: /iamge is not a command; did you mean /image? /help lists them",
        "qwen25vl: /qiut is not a command; did you mean /quit? /help lists them",
        "qwen25vl: /dance is not a command; /help lists them",
        "qwen25vl: / is not a command; /help lists them",
    ]
    assert asked[2:] == [("/etc/hosts is what?", [], 0)]


@pytest.mark.usefixtures("loaded", "folder")
@pytest.mark.parametrize(
    "command",
    ["/video bad.mp4", "/image bad.png", "/image c.png strip.png", "/video clip.gif none.mp4"],
)
def test_a_bad_file_is_refused_when_it_is_given(
    command: str,
    asked: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Every later question failed until /reset, which forgets the conversation.
    Of several, none waits."""
    assert talk(monkeypatch, "Hello", command, "Again?", "And again?") == 1
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert re.search(r"bad\.|strip|none", err)
    assert asked == [("Hello", [], 0), ("Again?", [], 0), ("And again?", [], 0)]
    assert len(out.splitlines()) == 3


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "option", [["-i", "bad.png"], ["-i", "c.png", "strip.png"], ["-v", "bad.mp4"]]
)
def test_a_bad_file_at_the_start(
    option: list[str], loaded: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversation began, and no question could be answered."""
    monkeypatch.setattr(
        Conversation, "stream", lambda *_, **__: pytest.fail("a question was asked")
    )
    assert talk(monkeypatch, "Hello", options=option) == 1


@pytest.mark.usefixtures("loaded", "folder")
def test_a_file_that_vanishes(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A picture is kept; a clip that is gone is left out, while it waits and in earlier turns,
    with a word."""
    take = qwen25vl.cli.chat.Talk.take  # type: ignore[attr-defined]

    def take_and_lose(self: Any, text: str) -> None:
        take(self, text)
        for name in {
            "/image c.png": ["c.png"],
            "First?": ["clip.gif"],
            "/video other.gif": ["other.gif"],
        }.get(text, []):
            Path(name).unlink()

    monkeypatch.setattr("qwen25vl.cli.chat.Talk.take", take_and_lose)
    lines = [
        "/image c.png",
        "/video clip.gif",
        "First?",
        "/video other.gif",
        "Second?",
        "Second?",
        "Third?",
    ]
    assert talk(monkeypatch, *lines) == 1
    out, err = capsys.readouterr()
    assert [(question, videos) for question, _, videos in asked] == [
        ("First?", 1), ("Second?", 1), ("Second?", 0), ("Third?", 0),
    ]  # fmt: skip
    for name in ("clip.gif", "other.gif"):
        assert f"{name} cannot be read any more; the conversation goes on without it" in err
    assert len(out.splitlines()) == 3


@pytest.mark.usefixtures("folder")
def test_too_long_a_question_lets_go_of_its_files(
    loaded: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Files that make the prompt too long waited for the next question, and the next, …"""
    model = loaded.model
    short = model.config.text_config
    assert (
        talk(
            monkeypatch,
            "/video " + "clip.gif " * 4,
            "What? " * short.max_position_embeddings,
            "Hello",
        )
        == 2
    )
    out, err = capsys.readouterr()
    assert err.count("clip.gif waits no longer") == 4
    assert out.splitlines()[-1] == loaded.ask("Hello", max_new_tokens=5).text
    assert issubclass(ContextLengthError, ValueError)


@pytest.mark.usefixtures("loaded")
def test_a_block_is_one_question(
    asked: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a terminal does not mark what is pasted, and in a pipe,
    this is how several lines are asked."""
    lines = [
        '"""Read',
        "",
        "  /image is no command here",
        'all.""" ',
        '"""one"""',
        '"""',
        "two",
        '"""',
        '"""open',
    ]
    assert talk(monkeypatch, *lines) == 2
    questions = [question for question, *_ in asked]
    assert questions == ["Read\n\n  /image is no command here\nall.", "one", "two"]
    assert "has no end" in capsys.readouterr().err


# --- in a terminal -------------------------------------------------------------------------------


class Terminal:
    """A command in a pseudo-terminal: `expect` what it writes, `type` what a person would."""

    def __init__(self, *argv: str, **environment: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:
            variables = {"OMP_NUM_THREADS": "1", "PYTHON_BASIC_REPL": "1", **environment}
            os.environ.pop("NO_COLOR", None)
            os.execvpe(
                sys.executable, [sys.executable, "-m", "qwen25vl", *argv], os.environ | variables
            )
        self.output = b""
        self.seen = 0

    def read(self) -> bool:
        """Read what there is; False at the end."""
        if select.select([self.descriptor], [], [], 0.1)[0]:
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:  # Linux: the other side is closed
                return False
            self.output += data
            return bool(data)
        return True

    def expect(self, pattern: bytes) -> None:
        deadline = time.monotonic() + 90
        while not (match := re.search(pattern, self.output[self.seen :])):
            assert self.read(), self.output
            assert time.monotonic() < deadline, self.output
        self.seen += match.end()

    def type(self, keys: bytes) -> None:
        os.write(self.descriptor, keys)

    def wait(self) -> int:
        while self.read():
            pass
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def test_pasted_lines_are_one_question() -> None:
    """Each pasted line was a question of its own. What a terminal marks as pasted is asked in one
    piece, after Enter; commands before it are obeyed; Ctrl-D ends."""
    pytest.importorskip("readline")
    terminal = Terminal("chat", *SHORT, TERM="xterm")
    terminal.expect(rb"\x1b\[\?2004h> ")
    terminal.type(b"\x1b[200~/nonsense\nDescribe\na dog\n\x1b[201~")
    terminal.type(b"\r")
    terminal.expect(rb"> $")
    terminal.type(b"\x1b[200~/help\nWhat?\x1b[201~\r")
    terminal.expect(rb"/reset")
    terminal.expect(rb"> $")
    terminal.type(b"\x04")
    assert terminal.wait() == 0
    assert terminal.output.count(b"cut off") == 0
    assert b"not a command" not in terminal.output


@pytest.mark.slow  # waits for a terminal, and too long beside other load
def test_ctrl_c_ends_the_answer_not_the_chat() -> None:
    """A real interrupt in the middle of a long answer: what was written stays on the screen."""
    lengths = ["--min-new-tokens", "7000", "--max-new-tokens", "7000"]
    terminal = Terminal("chat", *lengths, TERM="xterm", NO_COLOR="1")  # without progress
    terminal.expect(rb"> $")
    terminal.type(b"Describe a dog and a cat.\r")
    terminal.expect(rb"\x1b\[\?2004l\r(?s:.*)[A-Z][a-z]* [a-z]+ [a-z]+ ")
    terminal.type(b"\x03")
    terminal.expect(rb"\r\nqwen25vl: stopped\r\n")
    terminal.expect(rb"> $")
    terminal.type(b"\x03")
    terminal.expect(rb"Ctrl-D leaves")
    terminal.type(b"/quit now\r")
    assert terminal.wait() == 0


@pytest.mark.parametrize("argv", [["chat", *SHORT], ["run", "Hello", *SHORT]], ids=["chat", "run"])
def test_a_dumb_terminal_gets_no_escape_codes(argv: list[str], folder: Path) -> None:
    """An editor's shell showed them as rubbish. Progress is left out there."""
    terminal = Terminal(*argv, "-i", "c.png", TERM="dumb")
    if argv[0] == "chat":
        terminal.expect(rb"> $")
        terminal.type(b"Hello\r")
        terminal.expect(rb"> $")
        terminal.type(b"/quit\r")
    else:
        terminal.type(b"")
    assert terminal.wait() == 0
    assert b"\x1b" not in terminal.output
    assert b"%" not in terminal.output


def test_no_color_is_heard(folder: Path) -> None:
    """NO_COLOR asks for plain output; TERM=xterm alone shows the progress."""
    shown = []
    for environment in ({}, {"NO_COLOR": "1"}):
        terminal = Terminal("run", "Hello", "-i", "c.png", *SHORT, TERM="xterm", **environment)
        assert terminal.wait() == 0
        shown.append(b"\x1b" in terminal.output)
    assert shown == [True, False]
