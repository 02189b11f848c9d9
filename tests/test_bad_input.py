"""Bad input: a typed error with one clear line, the right exit code from the shell, and a model
that stays usable."""

import io
import json
import math
import shutil
import struct
import wave
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

import qwen25vl
from qwen25vl import errors
from qwen25vl.cli import main
from qwen25vl.vlm import VisionLanguageModel

SHORT = {"max_new_tokens": 3}
Shell = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def vlm(tiny_folder: Path) -> VisionLanguageModel:
    return qwen25vl.load(tiny_folder)


@pytest.fixture
def shell(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Shell:
    """Run the command with the model that is loaded already:
    (exit code, standard output, standard error)."""

    def run(*argv: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["run", "?", "-m", "loaded", *argv])
        return code, *capsys.readouterr()

    monkeypatch.setattr("qwen25vl.cli.opening.load", lambda *_, **__: vlm)
    return run


def usable(vlm: VisionLanguageModel, expected: list[str] = []) -> bool:  # noqa: B006 (the first answer is kept)
    """Whether a plain question still gets the answer it got first."""
    answer = vlm.ask("Hello", [Image.new("RGB", (56, 56), "red")], **SHORT).text
    expected.append(answer)
    return answer == expected[0]


def one_line(error: BaseException) -> str:
    message = str(error)
    assert message
    assert "\n" not in message
    return message


# --- pictures
# ------------------------------------------------------------------------------------------------


def encoded(kind: str, size: tuple[int, int] = (80, 60)) -> bytes:
    file = io.BytesIO()
    Image.effect_noise(size, 90).convert("RGB").save(file, kind)
    return file.getvalue()


def huge_png() -> bytes:
    """A PNG whose header claims 20,000 × 20,000 pixels and whose content is a few bytes."""

    def part(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + kind
            + content
            + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = part(b"IHDR", struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n"
        + header
        + part(b"IDAT", zlib.compress(b"\0" * 99))
        + part(b"IEND", b"")
    )


PICTURES: dict[str, tuple[Callable[[], bytes], type[errors.Qwen25VLError]]] = {
    "text.png": (lambda: b"this is no picture\n" * 9, errors.MediaFormatError),
    "empty.png": (lambda: b"", errors.MediaFormatError),
    "cut.jpg": (lambda: encoded("JPEG")[:-200], errors.MediaFormatError),
    "cut.png": (lambda: encoded("PNG")[:-2000], errors.MediaFormatError),
    "cut.webp": (lambda: encoded("WEBP")[:-200], errors.MediaFormatError),
    "head.png": (lambda: encoded("PNG")[:20], errors.MediaFormatError),
    "huge.png": (huge_png, errors.MediaSizeError),
    "ribbon.png": (lambda: encoded("PNG", (2020, 10)), errors.MediaSizeError),
    "named.png": (lambda: encoded("PCX"), errors.MediaFormatError),
    "icon.png": (lambda: encoded("ICNS", (64, 64)), errors.MediaFormatError),
    "pdf.png": (lambda: encoded("PDF")[:300], errors.MediaFormatError),
    "tga.jpg": (lambda: encoded("TGA"), errors.MediaFormatError),
}


@pytest.mark.parametrize("name", PICTURES)
def test_pictures_that_can_not_be_used(
    name: str, vlm: VisionLanguageModel, tmp_path: Path, shell: Shell
) -> None:
    """Pillow's own errors, half-grey pictures and gigabytes of memory came out of these."""
    make, kind = PICTURES[name]
    path = tmp_path / name
    path.write_bytes(make())
    with pytest.raises(kind) as caught:
        vlm.ask("?", path, **SHORT)
    assert name in one_line(caught.value)
    assert usable(vlm)
    assert shell("-i", str(path)) == (1, "", f"qwen25vl: {caught.value}\n")


def test_pictures_that_are_not_there(vlm: VisionLanguageModel, tmp_path: Path) -> None:
    """A missing file, a folder, an address without a server:
    which one it was must be in the message."""
    for source in (
        tmp_path / "none.png",
        str(tmp_path),
        "file:///none/here.png",
        "http://127.0.0.1:9/x.png",
    ):
        with pytest.raises(errors.MediaNotFoundError) as caught:
            vlm.ask("?", [source], **SHORT)
        assert str(source)[-6:] in one_line(caught.value)
        assert caught.value.exit_code == 1
    with pytest.raises(errors.UsageError):
        vlm.ask("?", [3.5], **SHORT)
    assert usable(vlm)


MODES = "1 L LA P PA RGB RGBA RGBa RGBX CMYK YCbCr HSV LAB I;16 I F".split()


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode_work(mode: str, vlm: VisionLanguageModel) -> None:
    """A 16-bit scan, a CMYK print or a palette must not end in an error."""
    answer = vlm.ask("?", [Image.new(mode, (60, 40))], **SHORT)
    assert answer.media[0].original_size == (40, 60)


def test_of_several_frames_the_first_is_taken(vlm: VisionLanguageModel, tmp_path: Path) -> None:
    """An animated GIF once was an array of frames to one caller and the last frame to another."""
    frames = [Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert (
        vlm.ask("?", tmp_path / "moving.gif", **SHORT).text == vlm.ask("?", frames[0], **SHORT).text
    )


# --- videos
# --------------------------------------------------------------------------------------------------


def write_clip(path: Path, num_frames: int = 12) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=6)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(num_frames):
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), (20 * index, 0, 99)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_sound(path: Path) -> Path:
    with wave.open(str(path), "wb") as sound:
        sound.setparams((1, 2, 8000, 8000, "NONE", ""))
        sound.writeframes(bytes(16000))
    return path


def test_videos_that_can_not_be_used(
    vlm: VisionLanguageModel, tmp_path: Path, shell: Shell
) -> None:
    """Text, sound alone, nothing, and a file that ends too early."""
    whole = write_clip(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "text.mp4").write_text("no video\n" * 99)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    write_sound(tmp_path / "sound.mp4")
    for name in ("text.mp4", "empty.mp4", "cut.mp4", "sound.mp4"):
        with pytest.raises(errors.MediaFormatError) as caught:
            vlm.ask("?", videos=[tmp_path / name], **SHORT)
        assert name in one_line(caught.value)
    with pytest.raises(errors.MediaNotFoundError):
        vlm.ask("?", videos=[tmp_path / "none.mp4"], **SHORT)
    with pytest.raises(errors.Qwen25VLError):
        vlm.ask("?", videos=[[]], **SHORT)
    assert usable(vlm)
    code, out, err = shell("-v", str(tmp_path / "sound.mp4"))
    assert (code, out, len(err.splitlines())) == (1, "", 1)


@pytest.mark.parametrize("fps", [0, -1.0, math.nan, math.inf])
def test_rates_that_can_not_be(
    fps: float, vlm: VisionLanguageModel, tmp_path: Path, shell: Shell
) -> None:
    """fps 0 divided by zero deep inside; NaN chose one frame."""
    clip = write_clip(tmp_path / "clip.mp4")
    with pytest.raises(errors.UsageError, match="fps"):
        vlm.ask("?", videos=clip, fps=fps, **SHORT)
    assert vlm.ask("?", videos=clip, **SHORT).media[0].kind == "video"
    code, out, err = shell("-v", str(clip), f"--fps={fps}")
    assert (code, out) == (2, "")
    assert "fps" in err


# --- prompts and options
# ---------------------------------------------------------------------------------------


def test_media_and_slots_must_fit(vlm: VisionLanguageModel) -> None:
    """More pictures than slots were dropped without a word, fewer ended in an index error."""
    slot, picture = "<|vision_start|><|image_pad|><|vision_end|>", Image.new("RGB", (56, 56))
    for text, images in (
        (slot, [picture] * 2),
        (slot * 2, [picture]),
        (slot, None),
        ("none", [picture]),
    ):
        with pytest.raises(errors.MessageError) as caught:
            vlm.processor(text=[text], images=images, return_tensors="pt")
        one_line(caught.value)
    inputs = dict(vlm.processor(text=[slot], images=[picture], return_tensors="pt"))
    with pytest.raises(errors.UsageError):
        vlm.model.generate(**{**inputs, "pixel_values": inputs["pixel_values"][:8]}, **SHORT)
    with pytest.raises(errors.UsageError):
        vlm.model.generate(inputs["input_ids"], inputs["attention_mask"], **SHORT)
    assert usable(vlm)


def test_a_prompt_longer_than_the_context(
    vlm: VisionLanguageModel, tmp_path: Path, shell: Shell
) -> None:
    """The message states the length that is needed and the item that costs it; nothing is cut
    inside a picture."""
    path = tmp_path / "poster.png"
    Image.new("RGB", (1960, 1960)).save(path)
    with pytest.raises(errors.ContextLengthError) as caught:
        vlm.ask("?", [Image.new("RGB", (56, 56)), path], **SHORT)
    message = one_line(caught.value)
    assert "4900" in message
    assert "poster.png" in message
    assert "4096" in message
    assert usable(vlm)
    code, out, err = shell("-i", str(path))
    assert (code, out) == (2, "")
    assert "poster.png takes 4900" in err


def test_messages_of_no_known_shape(vlm: VisionLanguageModel) -> None:
    """Each of these was once answered as if nothing stood there."""
    for messages in (
        [],
        [{"content": "no role"}],
        [{"role": "user", "content": [{"type": "sculpture", "sculpture": "x"}]}],
        [{"role": "user", "content": 3}],
        ["hello"],
    ):
        with pytest.raises(errors.MessageError) as caught:
            vlm.ask(messages, **SHORT)  # type: ignore[arg-type]
        one_line(caught.value)
    assert usable(vlm)


def test_unknown_options(vlm: VisionLanguageModel, tiny_folder: Path) -> None:
    """A misspelt option must be named, in every door."""
    with pytest.raises(errors.OptionError, match="max_tokens"):
        vlm.model.generate(torch.tensor([[1]]), max_tokens=3)
    with pytest.raises(errors.OptionError, match="max_tokens"):
        vlm.ask("?", max_tokens=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="maxpixels"):
        qwen25vl.load(tiny_folder, maxpixels=3)  # type: ignore[call-arg]
    with pytest.raises(errors.UsageError, match="int2"):
        qwen25vl.load(tiny_folder, quantize="int2")
    with pytest.raises(errors.UsageError, match="float7"):
        qwen25vl.load(tiny_folder, dtype="float7")
    assert usable(vlm)


def test_out_of_memory_says_what_was_needed(
    vlm: VisionLanguageModel,
    monkeypatch: pytest.MonkeyPatch,
    tiny_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """torch's own words name an allocator; what helps is to know how large the request was."""

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 99000000000 bytes."
        )

    with monkeypatch.context() as patch:
        patch.setattr(type(vlm.model.visual), "encode_in_parts", refuse)
        with pytest.raises(errors.OutOfMemoryError) as caught:
            vlm.ask("?", Image.new("RGB", (56, 56)), **SHORT)
        assert "patches" in one_line(caught.value)
    assert usable(vlm)
    with monkeypatch.context() as patch:
        patch.setattr(type(vlm.processor), "apply_chat_template", refuse)
        with pytest.raises(errors.OutOfMemoryError, match=r"99\.00 GB"):
            vlm.stream("?", Image.new("RGB", (56, 56)))
        patch.undo()
        patch.setattr("qwen25vl.processing.prepare.prepare_picture", lambda *_: bytearray(1 << 60))
        with pytest.raises(errors.OutOfMemoryError):
            vlm.ask("?", Image.new("RGB", (56, 56)))
    monkeypatch.setattr("qwen25vl.cli.run.open_model", refuse)
    assert main(["run", "?", "-m", str(tiny_folder)]) == 1
    assert "another 99.00 GB" in capsys.readouterr().err


# --- checkpoints
# -----------------------------------------------------------------------------------------------


def edit_config(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def cut_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def corrupt_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 64 + path.read_bytes()[64:])


def pickled_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    index = {
        "metadata": {},
        "weight_map": {"model.norm.weight": "model-00002-of-00002.safetensors"},
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "no JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
    "another model": (lambda folder: edit_config(folder, model_type="llama"), "llama"),
    "impossible": (
        lambda folder: edit_config(folder, num_attention_heads=3),
        "num_attention_heads",
    ),
    "other shapes": (lambda folder: edit_config(folder, intermediate_size=97), "mlp"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "missing shard": (missing_shard, "model-00002-of-00002.safetensors"),
    "cut weights": (cut_weights, "model.safetensors"),
    "corrupt weights": (corrupt_weights, "model.safetensors"),
    "pickle": (pickled_weights, "pickle"),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer.json"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_folders_that_are_no_checkpoint(
    fault: str, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each is told by name before a question is asked;
    a pickle is never opened, nothing is left at random."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(tiny_folder, folder)
    spoil, words = BROKEN[fault]
    spoil(folder)
    with pytest.raises(errors.CheckpointError) as caught:
        qwen25vl.load(folder)
    assert words in one_line(caught.value)
    if fault == "pickle":
        assert main(["run", "?", "-m", str(folder)]) == 1
        assert capsys.readouterr().err == f"qwen25vl: {caught.value}\n"


def test_names_that_lead_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Offline, an unknown hub name must be an answer within a moment, not a row of retries."""
    with pytest.raises(errors.HubError, match="owner-of-nothing/no-model"):
        qwen25vl.load("owner-of-nothing/no-model", local_files_only=True)
    with pytest.raises(errors.CheckpointError, match="no-folder"):
        qwen25vl.load(tmp_path / "no-folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.CheckpointError, match="file"):
        qwen25vl.load(tmp_path / "file")
    assert main(["run", "?", "-m", "owner-of-nothing/no-model", "--offline"]) == 1
    assert main(["info", "owner-of-nothing/no-model", "--offline"]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 2
