"""Boxes and points in an answer: read them, map them back to the original picture, draw them.

Qwen2.5-VL answers in pixels of the picture as it saw it (the model size), not of the picture it was
given. Places are read in every form that the family writes, wherever they stand in the text:

    {"bbox_2d": [x1, y1, x2, y2], "label": "cup"}, {"point_2d": [x, y], "label": "cup"}    objects
    click(x=100, y=250), {"action": "left_click", "coordinate": [100, 250]}   actions on a screen
    <|object_ref_start|>cup<|object_ref_end|><|box_start|>(x1,y1),(x2,y2)<|box_end|>   special
    tokens
    <point>x y</point>, <points x1="…" y1="…" alt="cup">cup</points>                       tags
    <p data-bbox="x1 y1 x2 y2">text</p>                                   document HTML

docs/boxes.md lists the forms. A place counts as soon as its coordinates are complete, also in an
object that is cut off or not quite JSON. Order is always x before y. What only looks like
coordinates, such as a list of four numbers in a text, is none.
"""

from qwen25vl.grounding.boxes import (
    Box,
    Point,
    Size,
    find_places,
    read_boxes,
    read_points,
    to_original,
)
from qwen25vl.grounding.drawing import draw

__all__ = [
    "Box",
    "Point",
    "Size",
    "draw",
    "find_places",
    "read_boxes",
    "read_points",
    "to_original",
]
