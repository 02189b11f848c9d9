"""Labels as they are drawn: in letters that a font has, each told apart from the others."""

from __future__ import annotations

import unicodedata
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from qwen25vl.grounding.fonts import (
    find_font,
    is_invisible,
    is_symbol,
    missing_letters,
    name_of,
    spell_out,
)

if TYPE_CHECKING:
    from qwen25vl.grounding.fonts import Font

MAX_LABEL_LENGTH = 30
MAX_NAMED_LETTERS = 10  # in a warning


@dataclass(frozen=True, slots=True)
class Caption:
    """A text and a font that has its letters."""

    text: str
    font: Font


def caption_labels(labels: Sequence[str], main_font: Font, size: int) -> dict[str, Caption]:
    """What is drawn for each label that is not empty. Labels that would look alike are numbered."""
    captions: dict[str, Caption] = {}
    missing: dict[str, None] = {}  # a set that keeps its order
    for label in labels:
        caption, letters = caption_label(label, main_font, size)
        missing.update(dict.fromkeys(letters))
        if caption.text:
            captions[label] = replace(caption, text=shorten(caption.text))
    counts = Counter(caption.text for caption in captions.values())
    for number, (label, caption) in enumerate(captions.items(), 1):
        if counts[caption.text] > 1:
            captions[label] = replace(caption, text=shorten(f"{number} {caption.text}"))
    if missing:
        warn_of_missing(list(missing))
    return captions


def warn_of_missing(letters: list[str]) -> None:
    """Says at the caller of `draw` which letters are not shown as such."""
    named = letters[:MAX_NAMED_LETTERS]
    shown = [f"{letter if letter.isprintable() else '?'} ({name_of(letter)})" for letter in named]
    more = f" and {len(letters) - len(named)} more" if len(letters) > len(named) else ""
    warnings.warn(
        f"no installed font has {', '.join(shown)}{more}; they are written by name, by code "
        "point or without accents. Install a font that has them, or give its file (font=)",
        stacklevel=4,
    )


def shorten(text: str) -> str:
    return text if len(text) <= MAX_LABEL_LENGTH else text[: MAX_LABEL_LENGTH - 1] + "…"


def caption_label(label: str, main_font: Font, size: int) -> tuple[Caption, str]:
    """A label in the main font or, if that lacks letters, in an installed one; and the letters that
    had to be spelled out.

    Symbols and emoji, which few fonts have, are spelled out before a whole label is.
    """
    text = " ".join(unicodedata.normalize("NFC", label).split())
    lacking = missing_letters(main_font, text)
    symbols = "".join(letter for letter in lacking if is_symbol(letter))
    for spelled in ("", symbols) if symbols else ("",):
        candidate = spell_out(text, spelled) if spelled else text
        if not missing_letters(main_font, candidate):
            return Caption(candidate, main_font), spelled
        letters = {letter for letter in candidate if letter != " " and not is_invisible(letter)}
        font = find_font("".join(sorted(letters)), size)
        if font is not None:
            return Caption(candidate, font), spelled
    return Caption(spell_out(text, lacking), main_font), lacking
