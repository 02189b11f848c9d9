"""Pictures of words: lines in several fonts, and tables such as receipts, with what they say."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from random import Random

from PIL import Image, ImageDraw, ImageFont

from train_demo.looking import Glyph
from train_demo.questions import Turn
from train_demo.scenes import GROUNDS, draw_ground, spoiled
from train_demo.things import THINGS, Atlas

WORDS = (
    "open closed welcome exit entry push pull stop danger private office garden school station "
    "museum market hotel kitchen library river bridge street summer winter spring autumn monday "
    "friday sunday morning evening night today fresh organic free sale only never always happy "
    "birthday thank you hello good day please keep out left right north south east west water fire "
    "power light music coffee bread milk butter sugar salt pepper rice soup salad price total sum "
    "name date number order table room floor ticket time page chapter first second third last next"
).split()
KEYS = (
    "milk bread butter sugar salt rice soup salad juice tea coffee cake eggs apples cheese fish "
    "water soap paper"
).split()
FIELDS = {
    "name": (
        "Anna Ben Clara David Emma Felix Grace Henry Ida Jonas Karla Leo Mia Noah Olga Paul Rosa "
        "Simon Tina Viktor"
    ),
    "city": (
        "Rome Paris Berlin Vienna London Madrid Oslo Lisbon Prague Warsaw Athens Dublin Zurich "
        "Turin Bern Lyon"
    ),
    "date": "", "room": "", "order": "", "seat": "", "age": "",
}  # fmt: skip
Written = tuple[Image.Image, list[Glyph]]
CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"
READ = (
    "What does it say?", "Read the text.", "What is written here?", "What does the text say?",
    "Read the text in the picture.", "What text is in the image?", "Please read this.",
)  # fmt: skip
READ_TABLE = (
    "Read the table as JSON.", "Give the entries of the table in JSON.",
    "Extract the fields as JSON.", "Read this receipt and output JSON.",
    "Output the key information in JSON.",
)  # fmt: skip
TITLES = ("Receipt", "Invoice", "Ticket", "Form", "Order")


def make_word(rng: Random) -> str:
    """A common word, the name of a thing, a word that does not exist, or a number;
    in one of three cases."""
    kind = rng.random()
    if kind < 0.3:
        word = rng.choice(WORDS)
    elif kind < 0.4:
        word = rng.choice(THINGS).split()[-1]
    elif kind < 0.8:
        syllables = rng.choice((1, 2, 2, 3))
        word = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(syllables))
        word += rng.choice(("", "", *CONSONANTS))
    else:
        return make_number(rng)
    return rng.choice((word, word, word.capitalize(), word.upper()))


def make_number(rng: Random) -> str:
    digits = str(rng.randrange(10 ** rng.choice((1, 2, 3, 4))))
    return rng.choice(
        (digits, digits, f"{rng.randrange(100)}.{rng.randrange(100):02}", f"{digits}%")
    )


@lru_cache(maxsize=400)
def font(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)


def paper(rng: Random, width: int, height: int) -> tuple[Image.Image, tuple[int, int, int], bool]:
    """A ground, a dark ink, and whether the picture is to be turned light on dark."""
    ink, is_inverted = (
        (rng.randrange(70), rng.randrange(70), rng.randrange(110)),
        rng.random() < 0.15,
    )
    return (
        draw_ground(width, height, rng.choice((*GROUNDS, "plain", "plain")), rng),
        ink,
        is_inverted,
    )


def finished(picture: Image.Image, is_inverted: bool, rng: Random) -> Image.Image:
    return spoiled(Image.eval(picture, lambda level: 255 - level) if is_inverted else picture, rng)


def write(
    rng: Random, atlas: Atlas, rows: Sequence[Sequence[str]], width: int, height: int
) -> Written | None:
    """Rows of one or two columns on a ground, in letters as large as fits or smaller;
    None where no size fits."""
    path = rng.choice(atlas.fonts)
    largest = int(min(46, 0.8 * height / len(rows)))
    size = rng.randint(min(15, largest), largest)
    while size >= 13:
        letters = font(path, size)
        gap = letters.getlength("  ")
        columns = [
            max(letters.getlength(row[c]) for row in rows if len(row) > c)
            for c in range(max(map(len, rows)))
        ]
        line = size * rng.uniform(1.15, 1.5)
        wide, tall = sum(columns) + gap * (len(columns) - 1), line * len(rows)
        if wide <= width - 8 and tall <= height - 6:
            break
        size -= 2
    else:
        return None
    picture, ink, is_inverted = paper(rng, width, height)
    pen = ImageDraw.Draw(picture)
    left, top = rng.uniform(4, width - wide - 4), rng.uniform(3, height - tall - 3)
    glyphs: list[Glyph] = []
    stretch = rng.uniform(0, width - left - wide - 4) if len(columns) > 1 else 0
    for number, row in enumerate(rows):
        for column, text in enumerate(row):
            x = left + (columns[0] + gap + stretch) * column
            glyphs += write_line(pen, text, x, top + line * number, letters, ink)
    return finished(picture, is_inverted, rng), glyphs


def write_line(
    pen: ImageDraw.ImageDraw,
    text: str,
    x: float,
    y: float,
    letters: ImageFont.FreeTypeFont,
    ink: tuple[int, int, int],
) -> list[Glyph]:
    pen.text((x, y), text, fill=ink, font=letters)
    _, upper, _, lower = letters.getbbox(text)
    ends = [letters.getlength(text[:end]) for end in range(len(text) + 1)]
    return [Glyph(letter, x + (start + end) / 2, y + (upper + lower) / 2)
            for letter, start, end in zip(text, ends[:-1], ends[1:], strict=True)]  # fmt: skip


def make_page(rng: Random, atlas: Atlas, width: int, height: int) -> Written:
    """A picture full of words in many fonts and sizes:
    to practise seeing letters, not to be asked about."""
    picture, ink, is_inverted = paper(rng, width, height)
    pen = ImageDraw.Draw(picture)
    glyphs: list[Glyph] = []
    top = rng.uniform(0, 8)
    while True:
        size = round(12.5 * (46 / 12.5) ** (rng.random() ** 2))  # small ones more often
        letters = font(rng.choice(atlas.fonts), size)
        if top + 1.2 * size > height:
            break
        x = rng.uniform(0, 20)
        while x < width:
            text = make_word(rng)
            if x + letters.getlength(text) < width:
                glyphs += write_line(pen, text, x, top, letters, ink)
            x += letters.getlength(text + " ") * rng.uniform(1, 1.2)
        top += size * rng.uniform(1.1, 1.4)
    return finished(picture, is_inverted, rng), glyphs


def make_lines(
    rng: Random, atlas: Atlas, width: int, height: int, easy: bool
) -> tuple[Written, list[Turn]]:
    """A picture of one to four short lines, and the question what it says."""
    while True:
        num_lines = 1 if easy else rng.choice((1, 1, 2, 3, 4))
        lines = [
            " ".join(make_word(rng) for _ in range(rng.choice((1, 1, 2, 3))))
            for _ in range(num_lines)
        ]
        if written := write(rng, atlas, [[line] for line in lines], width, height):
            text = "\n".join(lines)
            numbers = [number for number, letter in enumerate(text) if letter != "\n"]
            letters = tuple(
                (n, glyph.x, glyph.y) for n, glyph in zip(numbers, written[1], strict=True)
            )
            return written, [Turn(rng.choice(READ), text, letters=letters)]


def make_table(rng: Random, atlas: Atlas, width: int, height: int) -> tuple[Written, list[Turn]]:
    """A receipt or a form of two to five rows, and the question for its entries in JSON."""
    while True:
        num_rows = rng.choice((2, 3, 3, 4, 5))
        if rng.random() < 0.5:
            entries = {
                key: f"{rng.randrange(30)}.{rng.randrange(100):02}"
                for key in rng.sample(KEYS, num_rows - 1)
            }
            if rng.random() < 0.6:
                entries["total"] = f"{sum(map(float, entries.values())):.2f}"
        else:
            entries = {key: make_field(rng, key) for key in rng.sample(tuple(FIELDS), num_rows)}
        mark = rng.choice(("", "", ":"))
        is_capital = rng.random() < 0.4
        rows: list[list[str]] = [
            [(key.capitalize() if is_capital else key) + mark, value]
            for key, value in entries.items()
        ]
        if rng.random() < 0.3:
            rows.insert(0, [rng.choice(TITLES)])
        if written := write(rng, atlas, rows, width, height):
            answer = f"```json\n{json.dumps(entries)}\n```"
            letters = find_letters(answer, entries, mark, written[1])
            turns = [Turn(rng.choice(READ_TABLE), answer, letters=letters)]
            key = rng.choice(tuple(entries))
            asked = Turn(f"What is the {key}?", f"The {key} is {entries[key]}.", entries[key])
            if key in FIELDS or key == "total":
                turns.insert(rng.choice((0, 1)), asked)
            return written, turns


def find_letters(
    answer: str, entries: Mapping[str, str], mark: str, glyphs: Sequence[Glyph]
) -> tuple[tuple[int, float, float], ...]:
    """Where the letters of keys and values in an answer stand;
    a title comes before them and marks follow keys."""
    letters = []
    number = len(glyphs) - sum(len(key + mark + value) for key, value in entries.items())
    start = 0
    for key, value in entries.items():
        for text, skipped in ((key, len(mark)), (value, 0)):
            start = answer.index(f'"{text}"', start) + 1
            letters += [
                (start + n, glyphs[number + n].x, glyphs[number + n].y) for n in range(len(text))
            ]
            number += len(text) + skipped
    return tuple(letters)


def make_field(rng: Random, key: str) -> str:
    if FIELDS[key]:
        return rng.choice(FIELDS[key].split())
    if key == "date":
        return f"{rng.randint(1, 28):02}.{rng.randint(1, 12):02}.{rng.randint(2019, 2031)}"
    if key == "seat":
        return f"{rng.randint(1, 40)}{rng.choice('ABCDEF')}"
    return str(rng.randint(1, 99) if key == "age" else rng.randint(1, 9999))
