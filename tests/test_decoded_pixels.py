"""max_decoded_pixels from every door:
what is decoded smaller keeps its own size in boxes, JSON and drawings.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qwen25vl
from qwen25vl import AutoProcessor
from qwen25vl.answer import Answer, Timings, Usage
from qwen25vl.cli import main
from qwen25vl.errors import MediaSizeError, MediaWarning, UsageError
from qwen25vl.inputs import MediaItem

PIXELS = 400 * 300
BOX = '[{"bbox_2d": [0, 0, 204, 156], "label": "a"}]'


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photos") / "photo.jpg"
    tags = Image.Exif()
    tags[0x112] = 6
    Image.effect_noise((300, 400), 80).convert("RGB").resize((400, 300)).save(path, exif=tags)
    return path


def test_the_processor_prepares_the_same_number_of_tokens(tiny_folder: Path, photo: Path) -> None:
    """A picture decoded smaller was seen smaller, and its boxes were half as large."""
    part = [{"role": "user", "content": [{"type": "image", "image": str(photo)}]}]
    ready = {"tokenize": True, "return_dict": True}
    whole = AutoProcessor.from_pretrained(tiny_folder).apply_chat_template(part, **ready)
    small = AutoProcessor.from_pretrained(tiny_folder, max_decoded_pixels=PIXELS - 1)
    with pytest.warns(MediaWarning, match="decoded at 1/2"):
        reduced = small.apply_chat_template(part, **ready)
    assert reduced.media[0] == whole.media[0]
    assert reduced.media[0].original_size == (400, 300)
    assert np.array_equal(reduced.image_grid_thw, whole.image_grid_thw)


def test_load_passes_the_limit_on(tiny_folder: Path, photo: Path) -> None:
    """An option of `load` that ends there."""
    vlm = qwen25vl.load(tiny_folder, max_decoded_pixels=PIXELS - 1)
    assert vlm.processor.max_decoded_pixels == PIXELS - 1
    with pytest.raises(MediaSizeError, match="at most 119999 are decoded"):
        vlm.ask("?", Image.new("RGB", (400, 300)), max_new_tokens=1)
    for wrong in (0, -1, 1.5, "many", True):
        with pytest.raises(UsageError, match="max_decoded_pixels is"):
            AutoProcessor.from_pretrained(tiny_folder, max_decoded_pixels=wrong)


def test_the_command(
    tiny_folder: Path, photo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    """The command's own copy of a picture to draw on lost its size."""
    argv = [
        "run",
        "?",
        "-m",
        str(tiny_folder),
        "-i",
        str(photo),
        "--max-decoded-pixels",
        str(PIXELS - 1),
    ]
    argv += ["--max-new-tokens", "1", "--json", "--draw", str(tmp_path / "drawn.png")]
    assert main(argv) == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["media"][0]["original_size"] == {"width": 300, "height": 400}
    assert "photo.jpg of 400×300 pixels is decoded at 1/2 of its size" in err
    assert main(["run", "?", "-i", str(photo), "--max-decoded-pixels", "0"]) == 2
    assert "max_decoded_pixels is 0" in capsys.readouterr().err


@pytest.mark.parametrize("limit", [PIXELS, PIXELS - 1])
def test_boxes_lie_where_they_were_seen(photo: Path, limit: int) -> None:
    """Boxes of the whole picture drawn on a smaller one stood at its double place."""
    from qwen25vl.processing.media import load_picture

    item = MediaItem("image", "photo.jpg", 0, (400, 300), (308, 224), 88)
    with pytest.warns(MediaWarning) if limit < PIXELS else np.errstate():
        picture = load_picture(photo, max_decoded_pixels=limit)
    answer = Answer("", "stop", Usage(1, 1, 1), Timings(0, 0, 0, 0, 0), (item,), BOX, (picture,))
    drawn = np.asarray(answer.draw()).astype(int)
    changed = np.argwhere(np.abs(drawn - np.asarray(picture).astype(int)).sum(-1) > 60)
    edge = changed.max(0) / np.asarray(picture).shape[:2]
    assert np.allclose(edge, (156 / 308, 204 / 224), atol=0.06)
