"""About two hundred everyday things, drawn from open emoji sets, and open fonts:
fetched, never committed.

    python -m train_demo.things FOLDER      # npm packages → FOLDER/<set>.npy and FOLDER/fonts/

A set is one array [things, SIDE, SIDE, 4] of RGBA pictures, cropped to what is drawn and centred;
where a set lacks a thing its picture is empty. OpenMoji is there for the test alone: the model
never sees it in training.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

SIDE = 128
FOLDER = Path(__file__).parent / "runs" / "things"
PACKAGES = {
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
    "fluent-flat": "@iconify-json/fluent-emoji-flat@1.2.6",
    "fluent": "@iconify-json/fluent-emoji@1.2.7",
    "emojione": "@iconify-json/emojione@1.2.3",
    "noto-v1": "@iconify-json/noto-v1@1.2.5",
    "openmoji": "@iconify-json/openmoji@1.2.29",
    "streamline": "@iconify-json/streamline-emojis@1.2.4",
    "fxemoji": "@iconify-json/fxemoji@1.2.2",
    "high-contrast": "@iconify-json/fluent-emoji-high-contrast@1.2.6",
    "monotone": "@iconify-json/emojione-monotone@1.2.1",
}
NEVER_TRAINED = "openmoji"
LINE_DRAWN = ("high-contrast", "monotone")  # black on nothing
# for training alone: nothing is measured on them
OTHER_MANNERS = ("streamline", "fxemoji", *LINE_DRAWN)
FONT_PACKAGES = (
    "roboto", "open-sans", "lato", "merriweather", "source-code-pro", "oswald", "playfair-display",
    "nunito", "bitter", "patrick-hand",
)  # fmt: skip
BY_KIND = {
    "animal": """
        dog 🐶, cat 🐱, mouse 🐭, rabbit 🐰, fox 🦊, bear 🐻, panda 🐼, koala 🐨, tiger 🐯,
        lion 🦁, cow 🐮, pig 🐷, frog 🐸, monkey 🐵, chicken 🐔, penguin 🐧, duck 🦆, eagle 🦅,
        owl 🦉, wolf 🐺, horse 🐴, unicorn 🦄, bee 🐝, butterfly 🦋, snail 🐌, ladybird 🐞,
        spider 🕷, scorpion 🦂, turtle 🐢, snake 🐍, octopus 🐙, crab 🦀, lobster 🦞, whale 🐳,
        dolphin 🐬, fish 🐟, shark 🦈, crocodile 🐊, elephant 🐘, rhinoceros 🦏, camel 🐪,
        giraffe 🦒, kangaroo 🦘, sheep 🐑, peacock 🦚, parrot 🦜, swan 🦢, flamingo 🦩,
        hedgehog 🦔, bat 🦇""",
    "plant": """
        tree 🌳, palm tree 🌴, cactus 🌵, tulip 🌷, rose 🌹, sunflower 🌻, mushroom 🍄,
        maple leaf 🍁, clover 🍀, fir tree 🌲""",
    "food": """
        apple 🍎, pear 🍐, lemon 🍋, banana 🍌, watermelon 🍉, pineapple 🍍, strawberry 🍓,
        peach 🍑, coconut 🥥, kiwi 🥝, tomato 🍅, avocado 🥑, broccoli 🥦, carrot 🥕, chilli 🌶,
        cucumber 🥒, aubergine 🍆, potato 🥔, croissant 🥐, egg 🥚, pancake 🥞, burger 🍔,
        pizza 🍕, hot dog 🌭, sandwich 🥪, ice cream 🍦, doughnut 🍩, cookie 🍪, cake 🎂,
        lollipop 🍭, coffee ☕, glass of wine 🍷, beer 🍺, honey pot 🍯, cheese 🧀""",
    "vehicle": """
        car 🚗, bus 🚌, fire engine 🚒, tractor 🚜, bicycle 🚲, scooter 🛴, motorcycle 🏍,
        train 🚂, aeroplane ✈, helicopter 🚁, rocket 🚀, sailing boat ⛵, ship 🚢,
        flying saucer 🛸""",
    "tool": """
        hammer 🔨, axe 🪓, spanner 🔧, screwdriver 🪛, pencil ✏, paintbrush 🖌,
        magnifying glass 🔍, key 🔑, padlock 🔒, torch 🔦, bucket 🪣, ladder 🪜, magnet 🧲,
        microscope 🔬, telescope 🔭, compass 🧭, battery 🔋, light bulb 💡, candle 🕯, umbrella ☂,
        bell 🔔, anchor ⚓, shield 🛡, dagger 🗡""",
    "instrument": """
        guitar 🎸, violin 🎻, saxophone 🎷, drum 🥁, piano 🎹, microphone 🎤""",
    "device": """
        telephone ☎, mobile phone 📱, laptop 💻, television 📺, camera 📷, alarm clock ⏰,
        hourglass ⌛, radio 📻, robot 🤖""",
    "toy": """
        football ⚽, basketball 🏀, rugby ball 🏉, dartboard 🎯, kite 🪁, balloon 🎈,
        teddy bear 🧸, die 🎲, puzzle piece 🧩, trophy 🏆, medal 🏅, gift 🎁""",
    "garment": """
        shirt 👕, dress 👗, sock 🧦, scarf 🧣, crown 👑, top hat 🎩, cap 🧢, shoe 👟, boot 👢,
        handbag 👜, rucksack 🎒, ring 💍""",
    "building": """
        house 🏠, castle 🏰, tent ⛺, fountain ⛲, Ferris wheel 🎡, factory 🏭""",
    "face": """
        smiling face 😀, crying face 😭, angry face 😡, sleeping face 😴, clown 🤡, ghost 👻,
        skull 💀, alien 👽, cowboy 🤠, pumpkin 🎃, snowman ⛄""",
    "other": """
        heart ❤, sun ☀, moon 🌙, cloud ☁, rainbow 🌈, snowflake ❄, flame 🔥, drop of water 💧,
        lightning bolt ⚡, globe 🌍, eye 👁, tooth 🦷, hand ✋, thumb 👍, brain 🧠, book 📖,
        envelope ✉, bed 🛏, chair 🪑, door 🚪, diamond 💎, flag 🚩, traffic light 🚦, teapot 🫖,
        bomb 💣, shopping trolley 🛒, toothbrush 🪥, volcano 🌋""",
}
CHARACTERS = {
    noun: character
    for text in BY_KIND.values()
    for noun, _, character in (entry.strip().rpartition(" ") for entry in text.split(","))
}
KINDS = {
    entry.strip().rpartition(" ")[0]: kind
    for kind, text in BY_KIND.items()
    for entry in text.split(",")
}
THINGS = tuple(KINDS)
PLURALS = {
    "mouse": "mice", "wolf": "wolves", "fish": "fish", "sheep": "sheep", "die": "dice",
    "tooth": "teeth", "aeroplane": "aeroplanes", "maple leaf": "maple leaves",
    "glass of wine": "glasses of wine", "drop of water": "drops of water", "food": "foods",
    "coffee": "coffees",
}  # fmt: skip


def plural(name: str) -> str:
    """Of a noun, perhaps with a colour before it: "red circle" -> "red circles"."""
    for ending, many in PLURALS.items():
        if name == ending or name.endswith(" " + ending):
            return name.removesuffix(ending) + many
    if name.endswith(("s", "x", "ch", "sh", "ss", "tomato", "potato", "mosquito")):
        return name + "es"
    if name.endswith("y") and name[-2] not in "aeiou":
        return name[:-1] + "ies"
    return name + "s"


def with_article(name: str) -> str:
    is_vowel = name.startswith(("a", "e", "i", "o", "u", "hourglass")) and not name.startswith(
        ("unicorn", "ukulele")
    )
    return f"{'an' if is_vowel else 'a'} {name}"


class Atlas:
    """The pictures of all things in the sets that may be shown; the arrays stay on disk, mapped.

    `for_training`: with the sets that nothing is measured on,
    and things may be drawn in still other manners.
    """

    def __init__(
        self, folder: Path = FOLDER, held_out: bool = False, for_training: bool = False
    ) -> None:
        self.folder, self.for_training = folder, for_training
        self.sets = [name for name in PACKAGES if (name == NEVER_TRAINED) == held_out]
        if not for_training:
            self.sets = [name for name in self.sets if name not in OTHER_MANNERS]

    @cached_property
    def arrays(self) -> list[np.ndarray]:
        return [np.load(self.folder / f"{name}.npy", mmap_mode="r") for name in self.sets]

    @cached_property
    def has(self) -> list[list[int]]:
        """The sets that hold each thing."""
        filled = [array[:, :, :, 3].any(axis=(1, 2)) for array in self.arrays]
        return [
            [number for number, known in enumerate(filled) if known[thing]]
            for thing in range(len(THINGS))
        ]

    @cached_property
    def fonts(self) -> list[Path]:
        return sorted((self.folder / "fonts").iterdir())

    def picture(self, noun: str, rng: Random) -> Image.Image:
        thing = THINGS.index(noun)
        number = rng.choice(self.has[thing])
        picture = Image.fromarray(self.arrays[number][thing])
        if self.sets[number] not in LINE_DRAWN:
            return picture
        if rng.random() < 0.5:
            return tinted(picture, mean_colour(self.arrays[self.has[thing][0]][thing]))
        return tinted(picture, any_colour(rng))


def any_colour(rng: Random) -> tuple[int, ...]:
    return tuple(rng.randint(90, 255) for _ in range(3))


def mean_colour(picture: np.ndarray) -> tuple[int, ...]:
    """Of what a picture [height, width, RGBA] shows."""
    return tuple(int(level) for level in picture[picture[:, :, 3] > 128, :3].mean(axis=0))


def tinted(drawing: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """A line drawing on white, its white in this colour."""
    picture = ImageChops.multiply(drawing.convert("RGB"), Image.new("RGB", drawing.size, colour))
    picture.putalpha(drawing.getchannel("A"))
    return picture


def rasterise(svg: str) -> Image.Image:
    """Cropped to what is drawn, as large as SIDE allows, in the middle of a square."""
    import resvg_py

    picture = Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * SIDE, height=2 * SIDE)))
    )
    picture = picture.convert("RGBA")
    picture = picture.crop(picture.getbbox())
    picture.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    square = Image.new("RGBA", (SIDE, SIDE))
    square.paste(picture, ((SIDE - picture.width) // 2, (SIDE - picture.height) // 2))
    return square


def on_white(drawing: Image.Image) -> Image.Image:
    """A drawing in black on nothing, with white behind what its lines surround."""
    lines = Image.new("L", (drawing.width + 2, drawing.height + 2))
    lines.paste(drawing.getchannel("A"), (1, 1))
    around = lines.point([255 * (level > 60) for level in range(256)])
    ImageDraw.floodfill(around, (0, 0), 128)
    inside = around.point([255 * (level != 128) for level in range(256)]).crop(
        (1, 1, *(s + 1 for s in drawing.size))
    )
    picture = Image.new("RGBA", drawing.size, "white")
    picture.alpha_composite(drawing)
    picture.putalpha(ImageChops.lighter(inside, drawing.getchannel("A")))
    return picture


def bodies_by_name(icons: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A set's icons under their names and other names, without hyphens:
    sets do not agree on these."""
    bodies: dict[str, dict[str, Any]] = icons["icons"]
    aliases = {
        name: bodies.get(alias["parent"]) for name, alias in icons.get("aliases", {}).items()
    }
    return {name.replace("-", ""): body for name, body in {**aliases, **bodies}.items() if body}


def find_body(
    noun: str, bodies: dict[str, dict[str, Any]], by_code: dict[str, str], slug: str
) -> dict[str, Any] | None:
    """The icon of a thing: by code point where the set tells them,
    else under Noto's name or ours."""
    code = f"{ord(CHARACTERS[noun]):x}"
    guesses = (
        by_code.get(code),
        by_code.get(code + "-fe0f"),
        slug,
        slug and f"{slug}-1",
        noun.replace(" ", ""),
    )
    return next(
        (bodies[key] for guess in guesses if guess and (key := guess.replace("-", "")) in bodies),
        None,
    )


def write_set(package: Path, path: Path, slugs: dict[str, str]) -> int:
    """Rasterise one package; returns how many of the things it has."""
    icons, by_code = (
        json.loads((package / f"{name}.json").read_text()) for name in ("icons", "chars")
    )
    atlas = np.zeros((len(THINGS), SIDE, SIDE, 4), np.uint8)
    bodies = bodies_by_name(icons)
    for number, (noun, character) in enumerate(CHARACTERS.items()):
        if icon := find_body(noun, bodies, by_code, slugs.get(character, "")):
            width, height = (icon.get(key) or icons.get(key) or 16 for key in ("width", "height"))
            names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            svg = f'<svg {names} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
            picture = rasterise(svg)
            atlas[number] = np.asarray(on_white(picture) if path.stem in LINE_DRAWN else picture)
    np.save(path, atlas)
    return int(atlas[:, :, :, 3].any(axis=(1, 2)).sum())


def fetch(package: str, folder: Path) -> Path:
    """Unpack an npm package."""
    command = ["npm", "pack", "--silent", package]
    name = subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.split()[-1]
    with tarfile.open(folder / name) as file:
        file.extractall(folder / name.removesuffix(".tgz"), filter="data")
    return folder / name.removesuffix(".tgz") / "package"


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    (folder / "fonts").mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as place:
        packages = {name: fetch(package, Path(place)) for name, package in PACKAGES.items()}
        slugs = json.loads((packages["noto"] / "chars.json").read_text())
        by_character = {
            c: slugs.get(f"{ord(c):x}", slugs.get(f"{ord(c):x}-fe0f", ""))
            for c in CHARACTERS.values()
        }
        for name, package in packages.items():
            print(name, write_set(package, folder / f"{name}.npy", by_character), "of", len(THINGS))
        for font in FONT_PACKAGES:
            files = fetch(f"@fontsource/{font}", Path(place)) / "files"
            for weight in (400, 700):
                if (file := files / f"{font}-latin-{weight}-normal.woff").exists():
                    shutil.copy(file, folder / "fonts")


if __name__ == "__main__":
    main()
