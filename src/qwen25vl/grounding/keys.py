"""The names under which models write places, labels and other numbers."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Literal

PlaceKind = Literal["box", "polygon", "point", "any"]

PLACE_KEYS: dict[str, PlaceKind] = {
    "bbox": "box",
    "box": "box",
    "boundingbox": "box",
    "bndbox": "box",
    "xyxy": "box",
    "xywh": "box",
    "bboxxywh": "box",
    "boxxywh": "box",
    "boxesxywh": "box",
    "bboxxyxy": "box",
    "boxxyxy": "box",
    "boxesxyxy": "box",
    "rect": "box",
    "rectangle": "box",
    "quad": "polygon",
    "quadrilateral": "polygon",
    "polygon": "polygon",
    "poly": "polygon",
    "boundingpoly": "polygon",
    "vertices": "polygon",
    "point": "point",
    "keypoint": "point",
    "clickpoint": "point",
    "startpoint": "point",
    "endpoint": "point",
    "coordinate": "any",
    "coord": "any",
    "startcoordinate": "any",
    "endcoordinate": "any",
    "clickcoordinate": "any",
    "targetcoordinate": "any",
    "startbox": "any",
    "endbox": "any",
}
GEOGRAPHIC_KEYS = {"coordinates", "coords"}  # also used for longitude and latitude
POSSIBLE_POINT_KEYS = {"location", "position", "place"}
POSSIBLE_BOX_KEYS = {"location", "position", "region", "area", "bounds", "place", "extent"}

LABEL_KEYS = (
    *("label", "labels", "textcontent", "text", "category", "name", "class", "ref", "description"),
    *("labelname", "classname", "categoryname", "objectname", "object"),
    *("caption", "title", "content", "element", "type"),
)
"""The first one that has a text counts. `type` may be the kind of an element beside its text."""
CORNER_KEYS = (
    ("x1", "y1", "x2", "y2"),
    ("x0", "y0", "x1", "y1"),
    ("xmin", "ymin", "xmax", "ymax"),
    ("minx", "miny", "maxx", "maxy"),
    ("left", "top", "right", "bottom"),
)
SIZE_KEYS = (
    ("x", "y", "width", "height"),
    ("x", "y", "w", "h"),
    ("left", "top", "width", "height"),
    ("xmin", "ymin", "width", "height"),
)
QUAD_KEYS = ("x1", "y1", "x2", "y2", "x3", "y3", "x4", "y4")
PATH_KEYS = (("startx", "starty", "endx", "endy"), ("fromx", "fromy", "tox", "toy"))
OPPOSITE_CORNERS = (("topleft", "bottomright"), ("lefttop", "rightbottom"), ("min", "max"))
ARGUMENT_KEYS = {"arguments", "argument", "args", "parameters", "parameter", "kwargs", "input"}
THOUGHT_KEYS = {"thought", "thoughts", "think", "thinking", "reasoning", "reason", "rationale"}

GENERIC_KEYS = ARGUMENT_KEYS | set(
    """object result detection item part element annotation found answer output response data
    prediction instance word line block field location position region area place bound extent child
    children attribute target list component entity entities image picture frame page layout content
    box bbox label text action step shape geometry""".split()
)
"""Names of containers, which say nothing about the thing inside."""

NUMBER_KEYS = set(
    """score price value number num count data date time year month day week quarter age temperature
    sale revenue cost profit total sum amount quantity rate ratio percent percentage confidence
    probability prob logit result size shape dim dimension resolution margin padding border color
    colour rgb rgba fill background mean std min max average median range interval step index
    indices id ids row column col rank grade point series axis x y z weight height width length
    depth speed distance duration population income expense budget measurement sample vector
    embedding matrix array list sequence code version chapter page option choice solution factor
    stride kernel offset frequency usage timestamp second minute hour level rating statistic stat
    metric accuracy loss precision recall error input output parameter weightage unit numeral
    balance january february march april may june july august september october november december
    jan feb mar apr jun jul aug sep oct nov dec monday tuesday wednesday thursday friday saturday
    sunday mon tue wed thu fri sat chart graph plot histogram dataset""".split()
)
"""Names of plain numbers: a list of four under one of them is no box."""

PERIOD = re.compile(r"(?:q|h|w|fy|t)?\d+")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+|\d+|[^\W\d_a-zA-Z]+")
POINT_ACTIONS = set(
    """click leftclick rightclick middleclick doubleclick tripleclick leftdouble leftsingle
    rightsingle tap doubletap longpress longclick longtap touch moveto mousemove movemouse hover
    dragto mousedown mouseup clickat tapat""".split()
)
PATH_ACTIONS = {"swipe", "drag", "leftclickdrag", "draganddrop", "dragdrop", "slide"}
OTHER_ACTIONS = {"scroll", "press", "move", "type", "input", "inputtext", "select", "hscroll"}
ACTIONS = POINT_ACTIONS | PATH_ACTIONS | OTHER_ACTIONS


@lru_cache(maxsize=1000)
def plain(key: str) -> str:
    """Lower case without blanks, dashes and underscores:
    start_box, startBox and "Start box" are one name."""
    return "".join(letter for letter in key.lower() if letter.isalnum())


@lru_cache(maxsize=1000)
def stem(key: str) -> str:
    """`plain` without a number at its end: bbox_2d, box1, coordinate2."""
    return plain(key).removesuffix("2d").rstrip("0123456789")


def singular(word: str, known: set[str] | dict[str, PlaceKind]) -> str:
    """The word, or what it is the plural of if that is known."""
    for ending in ("", "s", "es"):
        if word.endswith(ending) and word.removesuffix(ending) in known:
            return word.removesuffix(ending)
    return word


@lru_cache(maxsize=1000)
def place_kind(key: str | None) -> PlaceKind | None:
    """What stands under a key: a "box" (4 numbers or corners), a "polygon", a
    "point", or "any", by its numbers."""
    return PLACE_KEYS.get(singular(stem(key), PLACE_KEYS)) if key else None


def is_known_key(key: str) -> bool:
    return place_kind(key) is not None or plain(key) in LABEL_KEYS


@lru_cache(maxsize=1000)
def is_generic(key: str) -> bool:
    """Whether a key names a container rather than a thing."""
    name = stem(key)
    return not name or place_kind(key) is not None or singular(name, GENERIC_KEYS) in GENERIC_KEYS


@lru_cache(maxsize=1000)
def names_numbers(key: str) -> bool:
    """Whether a key names numbers, a period of time, or nothing at all. Its last word decides: a
    price tag is a thing, a unit price is not."""
    words = [word.lower() for word in WORD.findall(key.partition("(")[0]) if word.isalpha()]
    if not words or PERIOD.fullmatch(plain(key)):
        return True
    return singular(words[-1], NUMBER_KEYS) in NUMBER_KEYS


def action_name(name: str) -> str:
    """The action that a call such as pyautogui.doubleClick stands for, or ""."""
    action = plain(name.rpartition(".")[2])
    return action if action in ACTIONS else ""
