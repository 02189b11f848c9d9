"""Labels in any script, told apart, and nothing drawn outside of the picture."""

import subprocess
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor, ImageFont
from small_font import small_font

from qwen25vl.grounding import Box, Point, draw, fonts
from qwen25vl.grounding.captions import caption_label
from qwen25vl.grounding.drawing import COLOURS

WORDS = ("杯子", "红狗", "コップ", "كأس", "कप", "तश्तरी", "🍎", "🚀", "Чашка", "ถ้วย")


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine without fontconfig whose fonts are those that a test puts into the folder."""
    monkeypatch.setattr(fonts, "font_folders", lambda: [tmp_path])
    monkeypatch.setattr(fonts, "ask_fontconfig", lambda letters: None)
    fonts.find_font.cache_clear()
    yield tmp_path
    fonts.find_font.cache_clear()


def picture_of(label: str) -> bytes:
    ground = Image.new("RGB", (300, 200), "grey")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return draw(ground, [Box(label, 20, 60, 200, 150)]).tobytes()


def test_words_in_every_script_are_told_apart(system: Path) -> None:
    """All words in letters that the font lacks were drawn as the same row of empty boxes."""
    assert len({picture_of(word) for word in WORDS}) == len(WORDS)


def test_what_no_font_has_is_named(system: Path) -> None:
    """A picture full of code points needs a word about what is missing and what helps."""
    with pytest.warns(UserWarning, match=r"杯 \(U\+676F\), 🍎 \(red apple\).*font=") as caught:
        draw(Image.new("RGB", (300, 200)), [Box("杯 🍎", 1, 2, 30, 40)])
    assert caught[0].filename == __file__
    font = ImageFont.load_default(20)
    assert caption_label("杯 cup", font, 20)[0].text == "U+676F cup"
    assert caption_label("🍎", font, 20)[0].text == "red apple"
    assert caption_label("👩‍🚀", font, 20)[0].text == "woman rocket"
    assert caption_label("a\x00\ud800", font, 20)[0].text == "a U+0000 U+D800"


def test_english_needs_no_other_font(system: Path) -> None:
    """What Pillow's own font has must not start a search, nor a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        draw(Image.new("RGB", (300, 200)), [Box('"The cat\'s #1" (50 %)', 1, 2, 30, 40)])
    assert fonts.find_font.cache_info().misses == 0


def test_accents_are_left_out_where_no_font_has_them(system: Path) -> None:
    """A code point in the middle of a word is harder to read than a missing accent."""
    font = ImageFont.load_default(20)
    assert caption_label("cafe\u0301 – naïve", font, 20)[0].text == "cafe - naive"
    assert caption_label("5 €", font, 20)[0].text == "5 euro sign"
    boxes = [Box("é", 1, 50, 30, 80), Box("e", 90, 50, 99, 80)]
    with pytest.warns(UserWarning, match=r"é \(U\+00E9\)"):
        first = draw(Image.new("RGB", (300, 200)), boxes)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        second = draw(Image.new("RGB", (300, 200)), [Box("e", 1, 50, 30, 80)])
    assert first.crop((0, 0, 30, 50)) != second.crop((0, 0, 30, 50))


def test_an_installed_font_is_found(system: Path) -> None:
    """A font that has some of the letters must not be taken for one that has them all."""
    (system / "noto-some.ttf").write_bytes(small_font("杯"))
    (system / "broken.ttf").write_bytes(b"no font")
    (system / "folder").mkdir()
    (system / "folder" / "all.ttf").write_bytes(small_font("杯子🍎"))
    font = fonts.find_font("子杯", 20)
    assert font is not None
    assert font.path == str(system / "folder" / "all.ttf")
    assert fonts.missing_letters(font, "杯子x🍎") == "x"
    assert fonts.find_font("杯x", 20) is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        boxes = [Box("杯子", 1, 2, 30, 40), Box("杯🍎", 1, 2, 30, 40)]
        draw(Image.new("RGB", (300, 200)), boxes)


def test_emoji_do_not_hide_the_words_beside_them(system: Path) -> None:
    """Few fonts have both emoji and letters; the letters are still worth their font."""
    (system / "letters.ttf").write_bytes(small_font("杯 abcdeflnoprst"))
    caption, spelled = caption_label("杯 🍎", ImageFont.load_default(20), 20)
    assert (caption.text, spelled) == ("杯 red apple", "🍎")
    assert isinstance(caption.font, ImageFont.FreeTypeFont)
    assert caption.font.path == str(system / "letters.ttf")


def test_fontconfig_is_asked_by_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Regular fonts come first; where fontconfig is not installed, it knows nothing."""
    asked: list[list[str]] = []

    def answer(command: list[str], **options: object) -> subprocess.CompletedProcess[bytes]:
        asked.append(command)
        lines = b"200\t0\t0\t/f/bold.otf\n80\t0\t65538\t/f/plain.ttc\n80\t0\t0\t/f/old.pcf.gz\n"
        return subprocess.CompletedProcess(command, 0, lines)

    monkeypatch.setattr(subprocess, "run", answer)
    assert fonts.ask_fontconfig("杯子") == [("/f/plain.ttc", 2), ("/f/bold.otf", 0)]
    assert asked[0][:2] == ["fc-list", ":charset=676f 5b50"]

    def fail(command: list[str], **options: object) -> None:
        raise FileNotFoundError("fc-list")

    monkeypatch.setattr(subprocess, "run", fail)
    assert fonts.ask_fontconfig("杯子") is None


def test_the_given_font_counts_first(tmp_path: Path) -> None:
    """font= must be used for every letter that it has."""
    path = tmp_path / "given.ttf"
    path.write_bytes(small_font("杯子"))
    ground = Image.new("RGB", (300, 200), "grey")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first = draw(ground, [Box("杯", 20, 60, 200, 150)], font=path)
        second = draw(ground, [Box("子", 20, 60, 200, 150)], font=path)
    assert first != second


def test_long_labels_with_one_beginning_are_numbered() -> None:
    """Shortened to the same letters, two things had the same name."""
    ground = Image.new("RGB", (900, 200), "grey")
    boxes = [Box("w" * 40 + ending, 20, 60, 200, 150) for ending in "ab"]
    colours = draw(ground, boxes[:1]), draw(ground, [boxes[0], Box(boxes[1].label, 20, 60, 20, 60)])
    rows = [picture.crop((20, 40, 120, 60)).tobytes() for picture in colours]
    assert rows[0] != rows[1]


@pytest.mark.parametrize("size", [(1, 1), (2, 9), (8, 8), (13, 13), (28, 16), (300, 12), (12, 300)])
def test_tiny_pictures(size: tuple[int, int]) -> None:
    """A label larger than the picture was drawn with its middle only, over everything."""
    width, height = size
    boxes = [Box("a long label", 0, 0, width, height), Box("x", -9, -9, 2, 2), Box("b", 5, 5, 1, 1)]
    drawn = draw(Image.new("RGB", size, "grey"), boxes, [Point("p", width, height)])
    assert drawn.size == size


def label_area(picture: Image.Image) -> tuple[int, int, int, int]:
    """Where the ground of a label in the first colour is: left, top, right, bottom."""
    ys, xs = np.nonzero((np.asarray(picture) == ImageColor.getrgb(COLOURS[0])).all(axis=2))
    return int(xs.min()), int(ys.min()), int(xs.max()), int(ys.max())


@pytest.mark.parametrize("corner", [(0, 0), (119, 0), (0, 89), (119, 89), (60, 45)])
def test_labels_at_the_border_are_whole(corner: tuple[int, int]) -> None:
    """A label of a place in a corner lost its end or its upper half."""
    x, y = corner
    areas = []
    for place in (Box("cup", x, y, x, y), Box("cup", 60, 45, 60, 45)):
        left, top, right, bottom = label_area(draw(Image.new("RGB", (120, 90), "grey"), [place]))
        areas.append((right - left, bottom - top))
        assert left >= 0
        assert right < 120
        assert top >= 0
        assert bottom < 90
    assert abs(areas[0][0] - areas[1][0]) <= 1
    assert abs(areas[0][1] - areas[1][1]) <= 2  # the box itself is a line below it


def test_labels_keep_clear_of_each_other() -> None:
    """The labels of things side by side covered one another."""
    boxes = [Box(str(index), 50, 90 + index, 200, 180) for index in range(7)]
    drawn = draw(Image.new("RGB", (300, 200), "grey"), boxes)
    pixels = np.asarray(drawn)[:, 49:58]
    for colour in COLOURS:
        assert (pixels == ImageColor.getrgb(colour)).all(axis=2).sum() > 40


def test_many_boxes_take_no_quadratic_time() -> None:
    """Every label looked at all others."""
    corners = [(index % 600, index % 400) for index in range(3000)]
    boxes = [Box(f"thing {(x + y) % 50}", x, y, x + 30, y + 30) for x, y in corners]
    started = time.process_time()
    draw(Image.new("RGB", (640, 480)), boxes)
    assert time.process_time() - started < 5
