"""The shell: answers on standard output, all else on standard error;
one line and a code for what went wrong."""

import io
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from PIL import Image

import qwen25vl
from qwen25vl.cli import main
from qwen25vl.cli.opening import ProgressLine
from qwen25vl.vlm import VisionLanguageModel

SHORT = ["--max-new-tokens", "5"]


@pytest.fixture(scope="module")
def picture_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.effect_noise((100, 60), 80).convert("RGB").save(path)
    return path


@pytest.fixture(scope="module")
def vlm(tiny_folder: Path) -> VisionLanguageModel:
    return qwen25vl.load(tiny_folder)


@pytest.fixture
def loaded(vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch) -> VisionLanguageModel:
    """The command gets the model that is loaded already, which saves a second each time."""
    monkeypatch.setattr("qwen25vl.cli.opening.load", lambda *_, **__: vlm)
    return vlm


@pytest.fixture
def demo(tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tiny checkpoint in the place of the built-in model."""
    monkeypatch.setattr("qwen25vl.vlm.DEMO_FOLDER", tiny_folder)
    return tiny_folder


def test_run_streams_the_answer_alone(
    tiny_folder: Path,
    vlm: VisionLanguageModel,
    picture_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`answer=$(qwen25vl run …)` must hold the answer and nothing else."""
    code = main(["run", "What is this?", "-i", str(picture_path), "-m", str(tiny_folder), *SHORT])
    out, err = capsys.readouterr()
    expected = vlm.ask("What is this?", picture_path, max_new_tokens=5)
    assert (code, out) == (0, expected.text + "\n")
    assert err == "qwen25vl: the answer was cut off at its longest; --max-new-tokens allows more\n"


def test_run_without_a_model_says_which_one_answers(
    demo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody should take the toy's answer for the real model's;
    it is said once, beside the answer."""
    assert main(["run", "Hello", *SHORT]) == 0
    assert capsys.readouterr().err.count("demo model") == 1


def test_json_has_text_usage_sizes_timings_and_boxes(
    tiny_folder: Path, picture_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Programs that call the command read this; width and height must not be swapped."""
    paths = ["-i", str(picture_path), "-i", str(picture_path)]
    assert (
        main(["run", "?", *paths, "-m", str(tiny_folder), "--json", "--max-pixels", "4000", *SHORT])
        == 0
    )
    answer = json.loads(capsys.readouterr().out)
    assert set(answer) == {
        "text",
        "finish_reason",
        "usage",
        "media",
        "boxes",
        "points",
        "seconds",
        "tokens_per_second",
    }
    assert answer["usage"]["completion_tokens"] == 5
    assert [item["original_size"] for item in answer["media"]] == [{"width": 100, "height": 60}] * 2
    assert [item["model_size"] for item in answer["media"]] == [{"width": 56, "height": 28}] * 2
    assert answer["media"][0]["name"] == str(picture_path)
    assert answer["seconds"]["prefill"] > 0
    assert set(answer["seconds"]) == {"preprocess", "vision", "prefill", "decode"}


def test_standard_input_holds_the_picture_or_the_question(
    loaded: VisionLanguageModel,
    picture_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`-` is the picture or the question, but not both,
    and --draw must not read it a second time."""
    expected = loaded.ask("What?", picture_path, max_new_tokens=5).text + "\n"

    def feed(data: bytes) -> None:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))

    feed(picture_path.read_bytes())
    assert main(["run", "What?", "-i", "-", "-m", "loaded", *SHORT]) == 0
    assert capsys.readouterr().out == expected
    feed(b"What?")
    assert main(["run", "-", "-i", str(picture_path), "-m", "loaded", *SHORT]) == 0
    assert capsys.readouterr().out == expected
    feed(picture_path.read_bytes())
    drawing = picture_path.with_name("drawn.png")
    assert main(["run", "What?", "-i", "-", "-m", "loaded", "--draw", str(drawing), *SHORT]) == 0
    out, err = capsys.readouterr()
    assert out == expected
    assert "no boxes" in err
    with Image.open(drawing) as drawn, Image.open(picture_path) as original:
        assert drawn.tobytes() == original.tobytes()
    assert main(["run", "-", "-i", "-", "-m", "loaded"]) == 2
    assert "only once" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "COMMAND"),
        (["dance"], "dance"),
        (["run"], "question"),
        (["run", "?", "--top-k", "many"], "--top-k"),
        (["run", "?", "--no-such-option"], "--no-such-option"),
        (["run", "?", "--quantize", "int2"], "int2"),
        (["run", "?", "--draw", "x.png"], "--draw"),
        (["run", "?", "-i", "a.png", "--draw", "x.what"], "x.what"),
        (["run", "?", "-i", "a.png", "--draw", "/no/such/folder/x.png"], "/no/such/folder"),
        (["run", "?", "--top-p", "1.5"], "top_p"),
        (["run", "?", "--max-new-tokens", "0"], "max_new_tokens"),
        (["run", "?", "--max-new-tok", "5"], "--max-new-tok"),
        (["run", "?", "--fps", "nan"], "fps"),
        (["run", " "], "question"),
        (["run", "?", "-m", ""], "empty"),
        (["run", "?", "-i", ""], "empty"),
        (["run", "?", "-i", "a.png", "--draw", "x.psd"], "x.psd"),
        (["chat", "-i", "-"], "standard input"),
        (["chat", "--top-p", "2"], "top_p"),
        (["info", "--fps", "nan"], "fps"),
        (["info", "--max-pixels", "-3"], "max_pixels"),
    ],
)
def test_misuse_is_one_line_and_code_2(
    argv: list[str], words: str, loaded: VisionLanguageModel, capsys: pytest.CaptureFixture[str]
) -> None:
    """A usage screen or a traceback hides what was wrong."""
    assert main(argv) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "demo model" not in line]
    assert out == ""
    assert len(lines) == 1
    assert lines[0].startswith("qwen25vl: ")
    assert words in lines[0]


@pytest.mark.parametrize("argv", [["run", "?"], ["chat"], ["info"]])
@pytest.mark.parametrize("option", ["-i", "-v"])
def test_what_is_not_there_is_found_before_the_model_is_loaded(
    argv: list[str],
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A misspelt path was told after minutes of downloading."""
    monkeypatch.setattr(
        "qwen25vl.cli.opening.load", lambda *_, **__: pytest.fail("the model was loaded")
    )
    assert (
        main(
            [*argv, "no/model", option, "no-such.file"]
            if argv == ["info"]
            else [*argv, option, "no-such.file"]
        )
        == 1
    )
    assert capsys.readouterr().err == "qwen25vl: no-such.file does not exist\n"


@pytest.mark.parametrize(
    ("shell", "code", "words"),
    [
        ("{run} >&-", 1, "standard output is closed"),
        ("{run} >/dev/full", 1, "No space left"),
        ("{run} 2>&-", 0, ""),
        ("{command} run - -m {model} <&-", 2, "standard input is closed"),
        ("{command} chat -m {model} <&-", 2, "standard input is closed"),
        (r"printf 'caf\351' | {command} run - -m {model} --max-new-tokens 2", 0, "cut off"),
        (r"printf 'caf\351\n' | {command} chat -m {model} --max-new-tokens 2", 0, ""),
    ],
)
def test_closed_full_and_foreign_streams(
    shell: str, code: int, words: str, tiny_folder: Path
) -> None:
    """Each of these was a traceback."""
    command = f"{sys.executable} -m qwen25vl"
    line = shell.replace("{run}", "{command} run Hello -m {model} --max-new-tokens 2")
    line = line.format(command=command, model=tiny_folder)
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, check=False)
    assert (done.returncode, "Traceback" in done.stderr, len(done.stderr.splitlines())) == (
        code,
        False,
        bool(words),
    )
    assert words in done.stderr


def test_an_address_is_fetched_once(
    loaded: VisionLanguageModel,
    picture_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """--draw fetched it again: slow, and perhaps another picture by then. Its name stays."""
    fetched: list[str] = []

    def download(url: str, *_: object) -> object:
        fetched.append(url)
        return picture_path.open("rb")

    monkeypatch.setattr("qwen25vl.processing.sources.download", download)
    url, drawing = "https://example.org/a.png", str(picture_path.with_name("fetched.png"))
    assert main(["run", "?", "-i", url, "-m", "loaded", "--draw", drawing, "--json", *SHORT]) == 0
    assert fetched == [url]
    assert json.loads(capsys.readouterr().out)["media"][0]["name"] == url


def test_ctrl_c_out_of_memory_and_faults(
    tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is quiet with 130; used-up memory is a line that says what helps;
    a fault of ours is not hidden."""

    def meet(error: BaseException) -> int:
        def open_model(arguments: object) -> None:
            raise error

        monkeypatch.setattr("qwen25vl.cli.run.open_model", open_model)
        return main(["run", "?", "-m", str(tiny_folder)])

    assert meet(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == ""
    assert (
        meet(
            RuntimeError(
                "DefaultCPUAllocator: can't allocate memory: you tried to allocate 5000000000 "
                "bytes."
            )
        )
        == 1
    )
    assert "out of memory: the last step wanted another 5.00 GB" in capsys.readouterr().err
    assert meet(MemoryError()) == 1
    assert capsys.readouterr().err.startswith("qwen25vl: out of memory;")
    assert meet(BrokenPipeError()) == 1
    assert capsys.readouterr().err == ""
    with pytest.raises(RuntimeError, match="fault"):
        meet(RuntimeError("fault"))


def talk(text: str, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    return main(["chat", "-m", "loaded", *SHORT])


def test_chat_through_a_pipe(
    loaded: VisionLanguageModel,
    picture_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A picture added in the middle belongs to the next question, /reset forgets all, and prompts
    stay off stdout."""
    lines = [
        "Hello",
        f"/image {picture_path}",
        "What is this?",
        "",
        "/reset",
        "Hello",
        "/quit",
        "never",
    ]
    assert talk("\n".join(lines), monkeypatch) == 0
    conversation = loaded.chat()
    first = conversation.ask("Hello", max_new_tokens=5).text
    second = conversation.ask("What is this?", picture_path, max_new_tokens=5).text
    out, err = capsys.readouterr()
    assert out == f"{first}\n{second}\n{first}\n"
    assert err == ""


def test_chat_goes_on_after_errors(
    loaded: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong path must not end a long conversation;
    a script still learns of it by the exit code."""
    lines = ["/image no-such.png", "/image", "/dance", "/help", "/video no-such.mp4", "Hello"]
    code = talk("\n".join(lines), monkeypatch)
    out, err = capsys.readouterr()
    assert out == loaded.ask("Hello", max_new_tokens=5).text + "\n"
    assert [line for line in err.splitlines() if line.startswith("qwen25vl:")] == [
        "qwen25vl: no-such.png does not exist",
        "qwen25vl: /image needs a file or an address",
        "qwen25vl: /dance is not a command; /help lists them",
        "qwen25vl: no-such.mp4 does not exist",
    ]
    assert "/reset" in err
    assert code == 1


def test_ctrl_c_stops_the_answer_not_the_chat(
    loaded: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first Ctrl-C used to throw the whole conversation away."""
    from qwen25vl.answer import AnswerStream

    take_next, calls = AnswerStream.__next__, []

    def interrupted(stream: AnswerStream) -> object:
        calls.append(stream)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return take_next(stream)

    monkeypatch.setattr(AnswerStream, "__next__", interrupted)
    assert talk("Hello\nHello again\n", monkeypatch) == 0
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "stopped" in err


def test_ctrl_c_while_a_picture_is_read_keeps_the_chat(
    loaded: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only an answer could be interrupted; anything else ended the conversation."""

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    def interrupted(source: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("qwen25vl.cli.chat.load_picture", interrupted)
    monkeypatch.setattr("sys.stdin", Terminal("/image big.tif\nHello\n"))
    assert main(["chat", "-m", "loaded", *SHORT]) == 0
    out, err = capsys.readouterr()
    assert loaded.ask("Hello", max_new_tokens=5).text in out
    assert "Ctrl-D leaves" in err


def test_media_wait_until_a_question_is_answered(
    loaded: VisionLanguageModel,
    picture_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """After a question that failed the next one was asked without its picture,
    and answered nonsense."""
    from qwen25vl.errors import NumericsError
    from qwen25vl.vlm import Conversation

    stream, failures = Conversation.stream, [NumericsError("not finite")]

    def failing(self: Conversation, *arguments: object, **options: object) -> object:
        if failures:
            raise failures.pop()
        return stream(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Conversation, "stream", failing)
    assert talk(f"/image {picture_path}\nWhat?\nWhat?\nAnd now?\n", monkeypatch) == 1
    conversation = loaded.chat()
    expected = [
        conversation.ask("What?", picture_path, max_new_tokens=5),
        conversation.ask("And now?", max_new_tokens=5),
    ]
    assert capsys.readouterr().out == "".join(f"{answer.text}\n" for answer in expected)


def test_info_tells_sizes_and_costs(
    tiny_folder: Path,
    picture_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The estimate must be had before the weights: without reading, or even having, them."""
    from qwen25vl.loading import checkpoint

    monkeypatch.setattr(
        checkpoint, "open_safetensors", lambda path: pytest.fail("weights were opened")
    )
    assert main(["info", str(tiny_folder), "-i", str(picture_path), "-i", str(picture_path)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    lines = out.splitlines()
    assert lines[0] == str(tiny_folder)
    for name in ("float32", "bfloat16", "int8", "int4"):
        assert name in lines[2]
    assert f"{picture_path}: image 100×60, seen as 112×56, 8 tokens" in lines[4]
    assert lines[-2].startswith("the prompt")
    assert lines[-1].startswith("on this machine about")
    assert main(["info", "-m", str(tiny_folder), "What?", "--quantize", "int8"]) == 0
    assert "with int8 weights" in capsys.readouterr().out
    assert main(["info", str(tiny_folder), "What", "else?"]) == 2


def test_info_knows_the_released_sizes() -> None:
    """3B is 3.75 billion parameters, of them 0.67 in the vision tower;
    a wrong estimate misleads every plan."""
    import torch

    from qwen25vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
    from qwen25vl.cli.info import num_parameters, weight_bytes
    from qwen25vl.measure.cost import cache_bytes

    config = Qwen2_5_VLConfig(tie_word_embeddings=True)
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(config)
    assert num_parameters(model) == 3_754_622_976
    memory = weight_bytes(model)
    assert memory["bfloat16"] == 2 * 3_754_622_976
    assert 2.9e9 < memory["int4"] < 4e9 < memory["int8"] < memory["bfloat16"]
    assert cache_bytes(config.text_config, 1000) == 1000 * 36 * 2 * 2 * 128 * 2


def test_bench_measures_every_stage(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The table and the JSON are for people and programs: nothing but them on standard output."""
    argv = ["bench", "-m", str(tiny_folder), "--runs", "1", "--threads", "1"]
    assert main([*argv, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert min(found["limits"].values()) > 1e8
    stages = {row["stage"].split(" at ")[0]: row for row in found["stages"]}
    for stage in (
        "loading",
        "preprocessing",
        "vision encoder",
        "prefill",
        "first token",
        "decode ×1",
        "decode ×8",
    ):
        assert stages[stage]["seconds"] > 0
    assert stages["decode ×8"]["tokens_per_second"] == 8 / stages["decode ×8"]["seconds"]
    assert found["memory"]["peak"] >= found["memory"]["anonymous"] > 0
    assert main(argv) == 0
    assert len(capsys.readouterr().out.splitlines()) <= 24
    assert main(["bench", "--random", "3b", "-m", str(tiny_folder)]) == 2
    assert main(["bench", "--runs", "0"]) == 2


def test_progress_line_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    """The answer must not begin behind a half-overwritten progress line."""
    line = ProgressLine()
    line("load", 1, 10)
    line("load", 10, 10)
    line("prefill", 1, 3)
    line("decode", 1, 3)
    shown = capsys.readouterr().err
    assert "loading the model 10 %" in shown
    assert shown.endswith("\r\x1b[K")
    assert not line.is_shown


def test_warnings_are_lines_too(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Python's own form shows a path and a line of source,
    which say nothing to the person at the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert (
            main(
                [
                    "run",
                    "Hello",
                    "-m",
                    str(tiny_folder),
                    "--dtype",
                    "float16",
                    "--stop",
                    "zzz",
                    *SHORT,
                ]
            )
            == 0
        )
    first, *_ = capsys.readouterr().err.splitlines()
    assert first.startswith("qwen25vl: float16 overflows")


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Both leave with 0, and the help shows how to ask about a picture."""
    for argv, words in (
        (["--version"], qwen25vl.__version__),
        (["--help"], 'qwen25vl run "'),
        (["run", "-h"], "--draw"),
    ):
        with pytest.raises(SystemExit) as leaving:
            main(argv)
        assert leaving.value.code == 0
        assert words in capsys.readouterr().out


def test_the_command_starts_without_heavy_packages() -> None:
    """`qwen25vl --help` took three seconds while it imported torch."""
    program = (
        "import sys, qwen25vl.cli as cli; cli.build_parser(); "
        "heavy = {'torch', 'numpy', 'PIL', 'av', 'jinja2', 'transformers', 'tokenizers'} & "
        "set(sys.modules); sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_run_imports_only_what_it_needs(tiny_folder: Path) -> None:
    """transformers never, av for videos only;
    and a closed pipe or a poor terminal is no traceback."""
    program = (
        "import sys; from qwen25vl.cli import main; "
        f"code = main(['run', 'Hello', '-m', {str(tiny_folder)!r}, '--max-new-tokens', '3']); "
        "heavy = {'av', 'transformers', 'torchvision', 'cv2'} & set(sys.modules); "
        "sys.exit(f'imported: {heavy}' if heavy else code)"
    )
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert b"Traceback" not in done.stderr


def test_the_work_goes_on_when_nobody_reads_standard_error():
    """A server ended with status 1 on SIGTERM, and cut its streams, once its log had no reader."""
    read, write = os.pipe()
    os.close(read)
    program = "from qwen25vl.cli.opening import say; say('a'); say('b'); print('goes on')"
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=write, text=True,
        check=False,
    )  # fmt: skip
    os.close(write)
    assert (done.returncode, done.stdout) == (0, "goes on\n")
