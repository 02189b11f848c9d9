"""A font that has the letters of a label.

Pillow's own font has the letters of English only. For others the fonts of the system are asked: by
fontconfig where it is installed, else by looking through the usual folders. Nothing is downloaded.
"""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageFont

    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

FONT_FILES = {".ttf", ".otf", ".ttc", ".otc"}
KNOWN_FONTS = ("noto", "dejavu", "arial", "pingfang", "hiragino", "msyh", "yugoth", "nirmala")
MAX_FONTS = 500  # that are looked through where there is no fontconfig
FONTCONFIG_SECONDS = 10.0
UNPRINTABLE = {"Cc", "Cs", "Cn", "Co"}
NO_LETTER = "\U0010fffd"  # for private use: fonts show it as they show what they lack


def missing_letters(font: Font, text: str) -> str:
    """The letters of a text, each once, for which a font has no picture."""
    from PIL import ImageFont

    if isinstance(font, ImageFont.FreeTypeFont):  # each letter alone, without marks of shaping
        font = font.font_variant(layout_engine=ImageFont.Layout.BASIC)
    blank = glyph(font, NO_LETTER)
    missing = []
    for letter in dict.fromkeys(text):
        if unicodedata.category(letter) in UNPRINTABLE:
            missing.append(letter)
        elif not (letter.isspace() or is_invisible(letter)):
            shape = glyph(font, letter)
            if shape == blank or not any(shape[1]):
                missing.append(letter)
    return "".join(missing)


def glyph(font: Font, letter: str) -> tuple[tuple[int, int], bytes]:
    """The size and pixels of one letter."""
    mask = font.getmask(letter)
    return mask.size, bytes(mask)


def is_invisible(letter: str) -> bool:
    """Joiners, marks of direction, and variation selectors."""
    return unicodedata.category(letter) == "Cf" or "\ufe00" <= letter <= "\ufe0f"


def is_symbol(letter: str) -> bool:
    """Emoji, their skin tones, currencies and other signs that have a telling name."""
    is_sign = unicodedata.category(letter) in ("So", "Sk", "Sm", "Sc")
    return is_sign and bool(unicodedata.name(letter, ""))


def spell_out(text: str, letters: str) -> str:
    """A text in which these letters are replaced by what stands for them."""
    visible = (letter for letter in text if not is_invisible(letter))
    parts = [stand_in(letter) if letter in letters else letter for letter in visible]
    return " ".join("".join(parts).split())


def stand_in(letter: str) -> str:
    """A dash for every dash, é without its accent, a symbol's name, any other's code point."""
    if unicodedata.category(letter) == "Pd":
        return "-"
    base = unicodedata.normalize("NFKD", letter)[0]
    if base != letter and base.isascii() and base.isalnum():
        return base
    return f" {name_of(letter)} "


def name_of(letter: str) -> str:
    """The name of a symbol, the code point of another letter."""
    return unicodedata.name(letter).lower() if is_symbol(letter) else f"U+{ord(letter):04X}"


@lru_cache(maxsize=256)
def find_font(letters: str, size: int) -> ImageFont.FreeTypeFont | None:
    """A font of the system, in a size in pixels, that has all of these letters;
    None if there is none."""
    for path, index in candidates(letters):
        font = load_font(path, size, index)
        if font is not None and not missing_letters(font, letters):
            return font
    return None


def load_font(path: str, size: int, index: int = 0) -> ImageFont.FreeTypeFont | None:
    """The font of a file; None where there is none in this size, as with fonts that hold pictures
    of one size."""
    from PIL import ImageFont

    try:
        return ImageFont.truetype(path, size, index)
    except OSError:
        return None


def candidates(letters: str) -> list[tuple[str, int]]:
    """(path, index within the file) of fonts that may have these letters."""
    known = ask_fontconfig(letters)
    return [(str(path), 0) for path in font_files()] if known is None else known


def ask_fontconfig(letters: str) -> list[tuple[str, int]] | None:
    """What fontconfig knows, regular fonts first;
    None where it is not installed or does not answer."""
    codes = " ".join(f"{ord(letter):x}" for letter in letters)
    columns = "%{weight}\t%{slant}\t%{index}\t%{file}\n"
    command = ["fc-list", f":charset={codes}", "--format", columns]
    seconds = FONTCONFIG_SECONDS
    try:
        answer = subprocess.run(command, capture_output=True, check=True, timeout=seconds)
    except (OSError, subprocess.SubprocessError):
        return None
    fonts = []
    for line in os.fsdecode(answer.stdout).splitlines():
        weight, slant, index, path = line.split("\t", 3)
        if Path(path).suffix.lower() in FONT_FILES and index.isdigit():
            is_regular = (weight, slant) == ("80", "0")
            fonts.append((not is_regular, path, int(index) & 0xFFFF))
    return [(path, index) for _, path, index in sorted(fonts)]


def font_files() -> list[Path]:
    """Font files in the usual folders, those that cover many scripts or are known for one first."""
    files: list[Path] = []
    for folder in font_folders():
        for root, _, names in os.walk(folder):
            files += [Path(root, name) for name in names if Path(name).suffix.lower() in FONT_FILES]
    files.sort(key=lambda path: (not path.name.lower().startswith(KNOWN_FONTS), path.name))
    return files[:MAX_FONTS]


def font_folders() -> list[Path]:
    home = Path.home()
    if sys.platform == "win32":
        folders = [Path(os.environ.get("WINDIR", r"C:\Windows"), "Fonts")]
        return [*folders, home / "AppData/Local/Microsoft/Windows/Fonts"]
    if sys.platform == "darwin":
        return [Path("/System/Library/Fonts"), Path("/Library/Fonts"), home / "Library/Fonts"]
    data = os.environ.get("XDG_DATA_DIRS") or "/usr/local/share:/usr/share"
    folders = [Path(folder, "fonts") for folder in data.split(":") if folder]
    return [*folders, home / ".local/share/fonts", home / ".fonts"]
