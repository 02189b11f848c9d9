"""The command's files: several after one -i, the question among them, drawings,
and errors as JSON."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import qwen25vl
from qwen25vl.cli import main
from qwen25vl.vlm import VisionLanguageModel

SHORT = ["--max-new-tokens", "5"]


@pytest.fixture(scope="module")
def vlm() -> VisionLanguageModel:
    return qwen25vl.load()


@pytest.fixture
def loaded(vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> VisionLanguageModel:
    """The command gets the model that is loaded already."""
    monkeypatch.setattr("qwen25vl.cli.opening.load", lambda *_, **__: vlm)
    return vlm


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Two pictures in the working folder."""
    monkeypatch.chdir(tmp_path)
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (100, 60), colour).save(tmp_path / name)
    return ["a.png", "b.png"]


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong must be found before a model is loaded."""
    monkeypatch.setattr("qwen25vl.cli.opening.load", lambda *_, **__: pytest.fail("it was loaded"))


def files() -> list[str]:
    """What lies in the working folder."""
    return sorted(path.name for path in Path().iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["QUESTION", "-i", "a.png", "b.png", "-m", "x"],
        ["-i", "a.png", "b.png", "QUESTION", "-m", "x"],
        ["-i", "a.png", "b.png", "-m", "x", "QUESTION"],
        ["-i", "a.png", "-m", "x", "-i", "b.png", "QUESTION"],
        ["-i", "a.png", "b.png", "-m", "x", "--", "QUESTION"],
        ["-m", "x", "--image", "a.png", "b.png", "QUESTION", "--json"],
        ["-ia.png", "--image=b.png", "QUESTION", "-m", "x"],
        ["-i", "a.png", "b.png", "QUESTION", "-v", "clip", "-m", "x"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize(
    "question", ["What differs?", "Describe", "Is it 3.5 or less?", "x" * 5000]
)
def test_the_question_stands_before_or_behind(
    words: list[str],
    question: str,
    pictures: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`-i *.png` was refused, and behind several files the question must not be taken for one."""
    asked: list[Any] = []

    class StopError(Exception):
        pass

    def stream(self: object, question: str, images: Any, videos: Any, **_: object) -> None:
        asked.append((question, images, videos))
        raise StopError

    monkeypatch.setattr(VisionLanguageModel, "stream", stream)
    monkeypatch.setattr(
        "qwen25vl.cli.opening.load",
        lambda *_, **__: VisionLanguageModel(None, None),  # type: ignore[arg-type]
    )
    Path("clip").touch()
    with pytest.raises(StopError):
        main(["run", *(question if word == "QUESTION" else word for word in words)])
    assert asked == [(question, pictures, ["clip"] if "clip" in words else [])]


@pytest.mark.parametrize(
    "argv",
    [
        ["-i", "a.png", "b.png"],
        ["-i", "a.png"],
        ["-i", "a.png", "mistyped.png"],
        ["-i", "a.png", "my photo.jpeg"],
        ["-i", "a.png", "folder/mistyped"],
        ["-i", "a.png", "-"],
        ["-v", "a.png", "b.png", "--json"],
        [],
    ],
    ids=" ".join,
)
@pytest.mark.usefixtures("unloaded")
def test_a_missing_question_is_told(
    argv: list[str], pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped file name must not be asked as a question; the line shows how it is written."""
    assert main(["run", *argv, "-m", "x"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("qwen25vl: the question is missing")
    assert 'qwen25vl run "QUESTION" -i PICTURE' in line
    for word in argv:
        assert word in line or word.startswith("-")


@pytest.mark.usefixtures("unloaded")
def test_words_without_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    """`run Describe the picture` said only that arguments were unrecognized."""
    assert main(["run", "Describe", "the", "picture", "-m", "x"]) == 2
    assert "needs quotes" in capsys.readouterr().err


def test_info_takes_several_files_too(
    pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A line each, and the prompt's with a question behind them is longer."""
    lengths = []
    for question in ([], ["Which one is red?"]):
        assert main(["info", "-i", *pictures, *question]) == 0
        out = capsys.readouterr().out
        assert all(f"{name}: image 100×60" in out for name in pictures)
        lengths.append(int(out.split("the prompt")[1].split()[0]))
    assert lengths[0] < lengths[1]


# --- --draw --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("a.png", "a.png"), ("a.png", "./a.png"), ("a.png", "link.png"), ("link.png", "a.png"),
        ("a.png", "hard.png"), ("FILE", "a.png"), ("-", "a.png"), ("a.png", "sub/../a.png"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("unloaded")
def test_a_picture_of_the_question_is_not_drawn_over(
    source: str,
    target: str,
    pictures: list[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The source was overwritten; it is the same file by whatever spelling, link or redirection."""
    before = Path("a.png").read_bytes()
    Path("link.png").symlink_to("a.png")
    Path("hard.png").hardlink_to("a.png")
    Path("sub").mkdir()
    with Path("a.png").open("rb") as file:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(file))
        named = Path("a.png").absolute().as_uri() if source == "FILE" else source
        assert main(["run", "?", "-i", "b.png", named, "--draw", target, "-m", "x"]) == 2
    assert f"--draw {Path(target)} would overwrite {named}" in capsys.readouterr().err
    assert Path("a.png").read_bytes() == before


@pytest.mark.usefixtures("unloaded")
def test_impossible_drawings_are_refused_at_once(
    pictures: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """After the answer is too late to learn of them."""
    Path("folder.png").mkdir()
    for target, words in (
        ("folder.png", "is a folder"),
        ("x.txt", "must end in"),
        ("x", "must end in"),
        ("none/x.png", "does not exist"),
    ):
        assert main(["run", "?", "-i", "a.png", "--draw", target, "-m", "x"]) == 2
        assert words in capsys.readouterr().err


@pytest.mark.usefixtures("loaded")
def test_a_drawing_goes_through_a_link(pictures: list[str]) -> None:
    """A link to another file stays one, an old drawing is replaced, and nothing else is left."""
    Path("old.png").write_bytes(b"old")
    Path("old.png").chmod(0o640)
    Path("link.png").symlink_to("old.png")
    argv = ["run", "Where is it?", "-i", "a.png", "-m", "x", *SHORT]
    assert main([*argv, "--draw", "link.png"]) == 0
    assert Path("link.png").is_symlink()
    assert Path("old.png").stat().st_mode & 0o777 == 0o640
    with Image.open("old.png") as drawn:
        assert (drawn.format, drawn.size) == ("PNG", (100, 60))
    assert main([*argv, "--draw", "b.JPG"]) == 0
    with Image.open("b.JPG") as drawn:
        assert drawn.format == "JPEG"
    assert files() == ["a.png", "b.JPG", "b.png", "link.png", "old.png"]


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["text", "json"])
@pytest.mark.parametrize("had_one", [False, True], ids=["new", "replaced"])
def test_a_full_disk(options: list[str], had_one: bool, pictures: list[str]) -> None:
    """A file of 0 bytes stayed, and an older drawing was lost. The answer is told all the same, and
    with
    --json as one document."""
    if had_one:
        Path("out.png").write_bytes(b"an older drawing")
    program = """if True:
        import resource, signal, sys
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20))
        from qwen25vl.cli import main
        sys.exit(main(sys.argv[1:]))
    """
    argv = ["run", "Where is it?", "-i", "a.png", "--draw", "out.png", *options, *SHORT]
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, *argv], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "qwen25vl: out.png cannot be written: " in done.stderr
    assert "Traceback" not in done.stderr
    if options:
        told = json.loads(done.stdout)
        assert told["text"]
        assert told["error"]["message"].startswith("out.png cannot be written")
    else:
        assert done.stdout.strip()
    assert files() == ["a.png", "b.png", *(["out.png"] if had_one else [])]
    if had_one:
        assert Path("out.png").read_bytes() == b"an older drawing"


@pytest.mark.usefixtures("loaded")
def test_interrupted_while_drawing(pictures: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a picture must not stand in the place of a whole one."""
    save = Image.Image.save

    def interrupted(picture: Image.Image, file: Any, *options: Any) -> None:
        save(picture, file, *options)
        raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", interrupted)
    assert main(["run", "?", "-i", "a.png", "--draw", "out.png", "-m", "x", *SHORT]) == 130
    assert files() == pictures


# --- --json and errors ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "code", "kind", "words"),
    [
        (["run", "?", "-i", "none.png"], 1, "MediaNotFoundError", "none.png does not exist"),
        (["run", "?", "--top-p", "3"], 2, "UsageError", "top_p"),
        (["run", "?", "--top-k", "many"], 2, "UsageError", "--top-k"),
        (["run"], 2, "UsageError", "the question is missing"),
        (["run", "?", "-m", "no/such/folder"], 1, "CheckpointError", "does not exist"),
        (["run", "?", "-i", "a.png", "--draw", "a.png"], 2, "UsageError", "would overwrite"),
        (["bench", "--runs", "0"], 2, "UsageError", "--runs"),
        (["bench", "--random", "3b", "-m", "x"], 2, "UsageError", "--random"),
        (["bench", "--no-such-option"], 2, "UsageError", "--no-such-option"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_json_as_well(
    argv: list[str],
    code: int,
    kind: str,
    words: str,
    pictures: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A program that reads the answer got nothing to read; the exit code and the line stay."""
    assert main([*argv, "--json"]) == code
    out, err = capsys.readouterr()
    told = json.loads(out)
    assert told.keys() == {"error"}
    assert told["error"].keys() == {"type", "message"}
    assert told["error"]["type"] == kind
    assert words in told["error"]["message"]
    assert err.splitlines()[-1] == f"qwen25vl: {told['error']['message']}"
    assert main(argv) == code
    assert capsys.readouterr().out == ""


def test_every_other_end_is_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C, used-up memory, a system's error, and a fault of the package,
    which still shows itself."""

    def meet(error: BaseException) -> tuple[int, Any]:
        def open_model(arguments: object) -> None:
            raise error

        monkeypatch.setattr("qwen25vl.cli.run.open_model", open_model)
        try:
            code = main(["run", "?", "-m", "x", "--json"])
        finally:
            told = json.loads(capsys.readouterr().out)["error"]
        return code, told

    assert meet(KeyboardInterrupt()) == (
        130,
        {"type": "KeyboardInterrupt", "message": "interrupted"},
    )
    code, told = meet(MemoryError())
    assert (code, told["type"]) == (1, "OutOfMemoryError")
    code, told = meet(OSError(28, "No space left on device"))
    assert (code, told["type"]) == (1, "OSError")
    with pytest.raises(RuntimeError, match="fault"):
        meet(RuntimeError("fault"))


def test_json_as_a_question_is_no_option(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What stands behind -- is no option."""
    assert main(["run", "-m", "no/such/folder", "--", "--json"]) == 1
    assert capsys.readouterr().out == ""
