"""Places in answers: every way the model family writes them, cut off anywhere,
mapped to the original picture."""

import json
import random
import time

import pytest
from PIL import Image

from qwen25vl.errors import UsageError
from qwen25vl.grounding import Box, Point, draw, read_boxes, read_points

SAME = {"original_size": (1000, 1000), "model_size": (1000, 1000)}


def boxes_of(text: str) -> list[tuple[str, float, float, float, float]]:
    return [(box.label, box.x1, box.y1, box.x2, box.y2) for box in read_boxes(text, **SAME)]


def points_of(text: str) -> list[tuple[str, float, float]]:
    return [(point.label, point.x, point.y) for point in read_points(text, **SAME)]


CUP = ("cup", 1, 2, 30, 40)


@pytest.mark.parametrize(
    "text",
    [
        '[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}]',
        '{"bbox_2d": [1, 2, 30, 40], "label": "cup"}',
        '```json\n[\n\t{"bbox_2d": [1, 2, 30, 40], "label": "cup"}\n]\n```',
        (
            'Here it is:\n```json\n{"label": "cup", "bbox_2d": [1.0, 2.0, 30, 40]}\n```\n'
            "Anything else?"
        ),
        (
            '{"objects": [{"bbox_2d": [1, 2, 30, 40], "label": "cup", "attributes": {"colour": '
            '"red"}}]}'
        ),
        '{"bbox_2d": [[1, 2, 30, 40]], "label": "cup"}',
        '{"bbox_2d": ["1", "2", "30", "40"], "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 40], "text_content": "cup"}',
        "[{'bbox_2d': [1, 2, 30, 40], 'label': 'cup'}]",
        '[{"bbox_2d": [1, 2, 30, 40], "label": "cup"}, {"bbox_2d": [5, 6',
        '{"bbox_2d": [1, 2, 30, 40], "label": "cup"',
        '{"label": "cup", "bbox_2d": [1, 2, 30, 40], "more',
        '{"label": "cup", "bbox_2d": [1, 2, 30, 40,],}',
        '{"bbox_2d": [1, 2, 30, 40, "label": "cup"}',
        '{"bbox_2d": "[1, 2, 30, 40]", "label": "cup"}',
        '{"bbox_2d": [[1, 2, 30, 40], [5, 6], "label": "cup"',
        "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2),(30,40)<|im_end|>",
        "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2),(30,40)",
        "<p class='cell' data-bbox='1 2 30 40'>cup</p>",
        '[{"bbox_2d": [1, 2, 30, 40], "label": "cup"},]',
        "<|object_ref_start|>cup<|object_ref_end|><|box_start|>(1,2),(30,40)<|box_end|>",
        (
            "A <|object_ref_start|> cup <|object_ref_end|> at <|box_start|>(1, 2), (30, "
            "40)<|box_end|>.<|box_start|>(5,"
        ),
        '<p data-bbox="1 2 30 40">cup</p>',
        '<td class="cell" data-bbox="1, 2, 30, 40">cup</td>',
    ],
)
def test_one_box_in_every_form(text: str) -> None:
    """Each of these was lost by the usual recipe:
    cut the fence off and call json.loads on the rest."""
    assert boxes_of(text) == [CUP]
    assert points_of(text) == []


@pytest.mark.parametrize(
    "text",
    [
        '[{"point_2d": [7, 9], "label": "nose"}]',
        "{'point_2d': ['7', '9'], 'label': 'nose'}",
        '<points x1="7" y1="9" alt="nose">the nose</points>',
        '<point x="7" y="9">nose</point>',
        "<point x='7' y='9' alt='nose'>",
        '{"point_2d": [7, 9], "label": "nose"',
        "<|object_ref_start|>nose<|object_ref_end|><|box_start|>(7,9)<|box_end|><|box_start|>(7,9),(3",
        "<|object_ref_start|>nose<|object_ref_end|><|box_start|>(7,9)<|box_end|>",
    ],
)
def test_one_point_in_every_form(text: str) -> None:
    """A point must not be taken for half a box, nor dropped because its form is the older one."""
    assert points_of(text) == [("nose", 7, 9)]
    assert boxes_of(text) == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "There is no cup {at all}.",
        '{"bbox_2d": [1, 2, 30], "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, NaN], "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 1e999], "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, true], "label": "cup"}',
        '{"bbox_2d": [1, 2, true, 30, 40], "label": "cup"}',
        '{"point_2d": [1, 2, true], "label": "cup"}',
        '{"bbox_2d": [1, 2, 30, 4',
        '{"bbox_2d": [1, 2, 30, 40, 50], "label": "cup"}',
        '{"bbox_2d": null, "label": "cup"}',
        '{"bbox_2d": "left"}',
        '<p data-bbox="here">cup</p>',
        '{"a":' * 3000,
        "{" * 3000,
        "{'" * 3000,
    ],
)
def test_what_is_no_place_gives_none(text: str) -> None:
    """An answer is free text: whatever stands in it,
    reading places neither fails nor invents one."""
    assert boxes_of(text) == points_of(text) == []


def test_labels_keep_quotes_braces_and_letters() -> None:
    """Braces, quotes and apostrophes in a label once ended the object early."""
    labels = ['a "big" cup', "the cat's {bowl}", "杯子", "line\nbreak", "] } ,"]
    text = json.dumps(
        [{"bbox_2d": [1, 2, 3, 4], "label": label} for label in labels], ensure_ascii=False
    )
    assert [box[0] for box in boxes_of(text)] == labels
    assert [
        box[0] for box in boxes_of(r"{'bbox_2d': [1, 2, 3, 4], 'label': 'the cat\'s \"bowl\"'}")
    ] == ['the cat\'s "bowl"']


def test_order_is_that_of_the_text_and_labels_carry_on() -> None:
    """Forms may be mixed in one answer; one label may stand before several boxes."""
    text = (
        "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(1,1),(2,2)<|box_end|><|box_start|>(3,3),(4,4)<|box_end|>"
        '{"bbox_2d": [5, 5, 6, 6], "label": "cat"}<p data-bbox="7 7 8 8">word</p>'
    )
    assert [(box[0], box[1]) for box in boxes_of(text)] == [
        ("dog", 1),
        ("dog", 3),
        ("cat", 5),
        ("word", 7),
    ]


def test_cut_off_anywhere_keeps_all_complete_objects() -> None:
    """max_new_tokens cuts JSON at any letter; a place survives once its coordinates are complete,
    its label once it is, and nothing else."""
    random.seed(0)
    items = [{"bbox_2d": [i, i, i + 10, i + 20], "label": f"thing {i}"} for i in range(8)]
    text = "```json\n" + json.dumps(items, indent=1) + "\n```"
    for length in range(text.rindex("]")):
        kept = boxes_of(text[:length])
        assert len(kept) == text[:length].count("]")
        num_labels = text[:length].count('"\n')
        labels = [item["label"] for item in items[: len(kept)]]
        assert [box[0] for box in kept[:num_labels]] == labels[:num_labels]
        assert [box[0] for box in kept[num_labels:]] in ([], [""], labels[num_labels:])


@pytest.mark.parametrize(
    "part",
    ["{", "[", '{"bbox_2d":', '{"bbox_2d": [1, ', '{"bbox_2d": [1, 2, 3, 4]', '"bbox_2d": [[[',
     "{'", "<|object_ref_start|>", "<|box_start|>", "<points x=", "<p data-bbox='", '"label": "',
     "1 ", '{"bbox_2d": [1,     '],
)  # fmt: skip
def test_reading_takes_no_quadratic_time(part: str) -> None:
    """100,000 braces of an answer that went wrong took four seconds."""
    started = time.process_time()  # not that of others on the machine
    read_boxes(part * (100_000 // len(part)), **SAME)
    read_boxes('{"bbox_2d": [1' + part * (100_000 // len(part)), **SAME)
    assert time.process_time() - started < 2


def test_labels_that_are_no_text() -> None:
    """null once became a thing that is called None."""
    assert boxes_of('{"bbox_2d": [1, 2, 3, 4], "label": null}') == [("", 1, 2, 3, 4)]
    assert boxes_of('{"bbox_2d": [1, 2, 3, 4], "label": null, "text_content": 7}') == [
        ("7", 1, 2, 3, 4)
    ]
    assert boxes_of(
        '{"parts": [{"bbox_2d": [5, 6, 7, 8]}], "bbox_2d": [1, 2, 3, 4], "label": "all"}'
    ) == [
        ("", 5, 6, 7, 8),
        ("all", 1, 2, 3, 4),
    ]


def test_round_trip_through_the_model_size() -> None:
    """A box drawn on the original, seen by the model at its size and answered in whole pixels,
    comes back to where it was within half a model pixel; height and width must not be swapped on
    the way."""
    random.seed(1)
    for _ in range(500):
        height, width = random.randint(1, 4000), random.randint(1, 4000)
        model_height, model_width = 28 * random.randint(1, 60), 28 * random.randint(1, 60)
        x1, x2 = sorted(random.uniform(0, width) for _ in range(2))
        y1, y2 = sorted(random.uniform(0, height) for _ in range(2))
        seen = [round(x1 / width * model_width), round(y1 / height * model_height)]
        seen += [round(x2 / width * model_width), round(y2 / height * model_height)]
        text = json.dumps({"bbox_2d": seen, "label": "x"})
        (box,) = read_boxes(
            text, original_size=(height, width), model_size=(model_height, model_width), picture=3
        )
        half_x, half_y = 0.5 * width / model_width + 1e-6, 0.5 * height / model_height + 1e-6
        assert abs(box.x1 - x1) <= half_x
        assert abs(box.x2 - x2) <= half_x
        assert abs(box.y1 - y1) <= half_y
        assert abs(box.y2 - y2) <= half_y
        assert not box.clipped
        assert (box.picture, box.raw) == (3, tuple(map(float, seen)))


def test_corners_in_order_and_inside_with_a_flag() -> None:
    """Boxes that reach outside, with swapped corners or without area are usable for a crop,
    and say so."""
    random.seed(2)
    for _ in range(500):
        height, width = random.randint(1, 500), random.randint(1, 500)
        raw = [random.randint(-100, 600) for _ in range(4)]
        text = json.dumps({"bbox_2d": raw})
        (box,) = read_boxes(text, original_size=(height, width), model_size=(280, 560))
        assert 0 <= box.x1 <= box.x2 <= width
        assert 0 <= box.y1 <= box.y2 <= height
        left, top, right, bottom = box.pixels
        assert 0 <= left <= right <= width
        assert 0 <= top <= bottom <= height
        outside = min(raw) < 0 or max(raw[0], raw[2]) > 560 or max(raw[1], raw[3]) > 280
        assert box.clipped == outside
    (point,) = read_points(
        '{"point_2d": [-5, 10]}', original_size=(100, 100), model_size=(100, 100)
    )
    assert (point.x, point.y, point.clipped, point.raw) == (0, 10, True, (-5, 10))


@pytest.mark.parametrize("size", [(40, 30), (640, 480), (3000, 200)])
@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA"])
def test_drawing_marks_the_place_and_leaves_the_picture(size: tuple[int, int], mode: str) -> None:
    """An overlay in pixels of the model size, or one that changed the caller's own picture,
    was the usual fault."""
    picture = Image.new(mode, size)
    before = picture.tobytes()
    width, height = size
    boxes = [
        Box("a", 2, height // 2, width - 3, height - 3),
        Box("", 0, 0, width, height),
        Box("b" * 50, width - 1, 1, width - 1, 1),
    ]
    drawn = draw(picture, boxes, [Point("nose", width / 2, height / 2), Point("", 0, 0)])
    assert (drawn.size, drawn.mode) == (size, "RGB")
    assert picture.tobytes() == before
    assert drawn.getpixel((width // 2, height - 3)) != (0, 0, 0)
    assert draw(picture).tobytes() == picture.convert("RGB").tobytes()


def test_labels_are_readable_on_their_ground() -> None:
    """White letters on yellow can not be read:
    each colour takes the letters that contrast with it."""
    picture = Image.new("RGB", (400, 400), "grey")
    boxes = [Box(str(index), 10, 30 + 50 * index, 100, 60 + 50 * index) for index in range(7)]
    drawn = draw(picture, boxes)
    for box in boxes:
        patch = drawn.crop((int(box.x1), int(box.y1) - 14, int(box.x1) + 9, int(box.y1)))
        darkest, brightest = patch.convert("L").getextrema()
        assert brightest - darkest > 90


def test_a_box_at_the_edge_shows_all_its_sides() -> None:
    """The right and bottom sides of a clipped box lay outside the picture;
    long labels hid the picture."""
    picture = Image.new("RGB", (300, 200))
    drawn = draw(picture, [Box("", 0, 0, 300, 200), Box("", 300, 200, 300, 200)])
    for corner in ((299, 100), (150, 199), (0, 100), (150, 0)):
        assert drawn.getpixel(corner) != (0, 0, 0)
    assert draw(picture, [Box("w" * 31, 0, 0, 9, 9)]) == draw(picture, [Box("w" * 99, 0, 0, 9, 9)])
    with pytest.raises(UsageError, match=r"nofont\.ttf"):
        draw(picture, font="nofont.ttf")
