"""Places in pixels of the original picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from qwen25vl.grounding.coordinates import Numbers, Place
from qwen25vl.grounding.reading import read_places

Size = tuple[int, int]


@dataclass(frozen=True)
class Box:
    """A labelled rectangle in pixels of the original picture, x1 ≤ x2 and y1 ≤ y2,
    inside the picture.

    The original is the picture as a viewer shows it, after its EXIF rotation. `clipped` says that
    the model's box reached outside; a box that lies entirely outside becomes a line or a point on
    the edge. `raw` is what the model wrote, in pixels of the model size: the four numbers of a box,
    or the corners of the quad or polygon that this box bounds. `picture` is the index of the
    picture among the media of the prompt.
    """

    label: str
    x1: float
    y1: float
    x2: float
    y2: float
    clipped: bool = False
    picture: int = 0
    raw: tuple[float, ...] = ()

    @property
    def pixels(self) -> tuple[int, int, int, int]:
        """(left, top, right, bottom) as whole pixels, as `picture.crop` takes it."""
        return round(self.x1), round(self.y1), round(self.x2), round(self.y2)


@dataclass(frozen=True)
class Point:
    """A labelled place in pixels of the original picture; the other fields are as in Box."""

    label: str
    x: float
    y: float
    clipped: bool = False
    picture: int = 0
    raw: tuple[float, ...] = ()


PlaceKind = TypeVar("PlaceKind", Box, Point)


def read_boxes(text: str, *, original_size: Size, model_size: Size, picture: int = 0) -> list[Box]:
    """All boxes of a text in the order they stand in it, those without area too. Sizes are (height,
    width) in pixels."""
    boxes = []
    for place in read_places(text):
        if len(place.numbers) < 4 or (place.implied and not lies_inside(place, model_size)):
            continue
        corners = place.corners
        x1, y1, first_clipped = to_original(corners[:2], original_size, model_size)
        x2, y2, second_clipped = to_original(corners[2:], original_size, model_size)
        clipped = first_clipped or second_clipped
        boxes.append(Box(place.label, x1, y1, x2, y2, clipped, picture, place.numbers))
    return boxes


def read_points(
    text: str,
    *,
    original_size: Size,
    model_size: Size,
    picture: int = 0,
) -> list[Point]:
    """All points of a text in the order they stand in it. Sizes are (height, width) in pixels."""
    points = []
    for place in read_places(text):
        if len(place.numbers) == 2:
            x, y, clipped = to_original(place.numbers, original_size, model_size)
            points.append(Point(place.label, x, y, clipped, picture, place.numbers))
    return points


def scale_place(place: PlaceKind, old: Size, new: tuple[float, float]) -> PlaceKind:
    """The same place in a picture of another size; both sizes are (height, width)."""
    down, across = new[0] / old[0], new[1] / old[1]
    factors = {"x": across, "x1": across, "x2": across, "y": down, "y1": down, "y2": down}
    own = vars(place)
    return replace(place, **{name: own[name] * factors[name] for name in own if name in factors})


def find_places(text: str, *, num_coordinates: int) -> list[tuple[str, Numbers]]:
    """(label, coordinates as written) of all places with this number of coordinates: 2 for points,
    4 for boxes."""
    places = (place for place in read_places(text) if len(place.numbers) == num_coordinates)
    return [(place.label, place.numbers) for place in places]


def lies_inside(place: Place, model_size: Size) -> bool:
    """Whether a box lies within the picture as the model saw it."""
    _, _, right, bottom = place.corners
    return right <= model_size[1] and bottom <= model_size[0]


def to_original(
    raw: Sequence[float],
    original_size: Size,
    model_size: Size,
) -> tuple[float, float, bool]:
    """x, y in model pixels to x, y in original pixels, and whether they had to be clipped."""
    x = raw[0] * original_size[1] / model_size[1]
    y = raw[1] * original_size[0] / model_size[0]
    inside_x = min(max(x, 0.0), float(original_size[1]))
    inside_y = min(max(y, 0.0), float(original_size[0]))
    return inside_x, inside_y, (x, y) != (inside_x, inside_y)
