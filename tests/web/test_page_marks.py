"""Boxes and points where they belong, and parts of pictures as new questions."""

import base64
import io
import re
from typing import Any

import pytest
from actions import EXAMPLES, ask, drop, give
from fake_server import FakeServer, Reply
from PIL import Image

pytestmark = pytest.mark.web

OWL, CAT = [11, 4, 50, 53], [60, 49, 134, 120]
SIZE = {"original_size": [168, 196], "model_size": [168, 196], "num_tokens": 42}
BOXES = [
    {"label": "owl", "box": OWL, "picture": 0},
    {"label": "cat", "box": CAT, "picture": 0},
]
FOUND = {"media": [{"kind": "image", "name": "boxes.png", **SIZE}], "boxes": BOXES}
READ_CANVAS = """
(canvas) => {
    const {width, height} = canvas;
    const values = canvas.getContext("2d").getImageData(0, 0, width, height).data;
    let text = "";
    for (let i = 0; i < values.length; i += 1) text += String.fromCharCode(values[i]);
    return [width, height, btoa(text)];
}
"""


def canvas_of(page: Any, index: int = 0) -> Image.Image:
    """What is drawn over a picture, without the picture."""
    width, height, data = page.locator(".marked canvas").nth(index).evaluate(READ_CANVAS)
    return Image.frombytes("RGBA", (width, height), base64.b64decode(data))


def colours(page: Any) -> list[tuple[int, ...]]:
    styles = page.eval_on_selector_all(
        ".marked .swatch", "(all) => all.map((one) => getComputedStyle(one).backgroundColor)"
    )
    return [tuple(int(n) for n in re.findall(r"\d+", style)[:3]) for style in styles]


def detect(page: Any, server: FakeServer, found: dict[str, Any] = FOUND) -> None:
    server.replies = [Reply(["[…]"], last=found)]
    drop(page, EXAMPLES / "boxes.png")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "Detect every animal in JSON.")
    page.wait_for_selector(".marked .swatch")
    page.wait_for_function("() => document.querySelector('.marked img').complete")
    page.wait_for_timeout(50)


@pytest.mark.parametrize("width", [1280, 390])
def test_boxes_are_drawn_where_they_belong(page: Any, server: FakeServer, width: int) -> None:
    """The four edges of each box, in the pixels of the canvas, at any size of the window. Boxes in
    pixels of the resized picture, or x and y exchanged, look right at a first glance."""
    page.set_viewport_size({"width": width, "height": 800})
    detect(page, server)
    drawn = canvas_of(page)
    scale = drawn.width / 196
    assert drawn.height == pytest.approx(168 * scale, abs=2)
    for box, colour in zip((OWL, CAT), colours(page), strict=True):
        x0, y0, x1, y1 = (round(value * scale) for value in box)
        middle = ((x0 + x1) // 2, (y0 + y1) // 2)
        edges = [(x0, middle[1]), (x1, middle[1]), (middle[0], y0), (middle[0], y1)]
        for x, y in edges:
            near = [drawn.getpixel((x + dx, y + dy)) for dx in (-1, 0, 1) for dy in (-1, 0, 1)]
            assert any(pixel == (*colour, 255) for pixel in near), (box, (x, y), near)
        assert drawn.getpixel(middle)[3] == 0
    assert drawn.getpixel((round(160 * scale), round(20 * scale)))[3] == 0


def test_points_are_drawn_where_they_belong(page: Any, server: FakeServer) -> None:
    points = [{"label": "cat", "point": [100, 74], "picture": 0}]
    detect(page, server, {"media": FOUND["media"], "points": points})
    drawn = canvas_of(page)
    scale = drawn.width / 196
    assert drawn.getpixel((round(100 * scale), round(74 * scale))) == (*colours(page)[0], 255)
    assert drawn.getpixel((round(100 * scale), round(90 * scale)))[3] == 0


def test_row_and_box_light_up_together(page: Any, server: FakeServer) -> None:
    """In both directions, and by keyboard too."""
    detect(page, server)
    frame = page.locator(".marked .frame").bounding_box()
    scale = frame["width"] / 196
    page.mouse.move(frame["x"] + 30 * scale, frame["y"] + 30 * scale)
    assert page.locator(".rows tr.active").inner_text().split("\t")[1] == "owl"
    assert canvas_of(page).getpixel((round(30 * scale), round(30 * scale)))[3] > 0
    page.locator(".rows tbody tr").nth(1).hover()
    assert page.locator(".rows tr.active").inner_text().split("\t")[1] == "cat"
    assert canvas_of(page).getpixel((round(100 * scale), round(80 * scale)))[3] > 0
    assert canvas_of(page).getpixel((round(30 * scale), round(30 * scale)))[3] == 0
    page.mouse.move(0, 0)
    page.locator(".rows tbody tr").nth(0).focus()
    assert page.locator(".rows tr.active").inner_text().split("\t")[1] == "owl"


def test_marks_belong_to_their_picture(page: Any, server: FakeServer) -> None:
    """The second of two pictures, counted over the whole conversation."""
    second = {"media": FOUND["media"] * 2, "boxes": [{**BOXES[0], "picture": 1}]}
    server.replies = [Reply(["A scene."]), Reply(["[…]"], last=second)]
    drop(page, EXAMPLES / "scene.png")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "Describe the picture.")
    drop(page, EXAMPLES / "boxes.png")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "Where is the owl?")
    page.wait_for_selector(".marked .swatch")
    assert page.locator(".marked").count() == 1
    assert page.locator(".marked .bar").inner_text().strip() == "boxes.png"


def test_a_box_becomes_a_picture_of_the_next_question(page: Any, server: FakeServer) -> None:
    detect(page, server)
    page.click("[aria-label='Ask about this cat']")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "What is this?")
    part = server.requests[1]["messages"][-1]["content"][0]["image_url"]["url"]
    cut = Image.open(io.BytesIO(base64.b64decode(part.split(",")[1]))).convert("RGB")
    whole = Image.open(EXAMPLES / "boxes.png").convert("RGB")
    assert cut.tobytes() == whole.crop(tuple(CAT)).tobytes()


def test_a_dragged_rectangle_becomes_a_picture(page: Any, server: FakeServer) -> None:
    """In pixels of the picture, whatever size it is shown in; the corners can be typed as well."""
    drop(page, EXAMPLES / "boxes.png")
    page.locator(".chip .thumbnail").click()
    page.wait_for_function("() => document.querySelector('#viewer-image').complete")
    area = page.locator("#viewer-canvas").bounding_box()
    scale = area["width"] / 196
    assert scale > 1.5
    page.mouse.move(area["x"] + 120.5 * scale, area["y"] + 110.5 * scale)
    page.mouse.down()
    page.mouse.move(area["x"] + 70.5 * scale, area["y"] + 60.5 * scale, steps=3)
    page.mouse.up()
    sides = ("left", "top", "right", "bottom")
    assert [page.input_value(f"#viewer-{side}") for side in sides] == ["70", "60", "121", "111"]
    page.fill("#viewer-right", "130")
    page.click("#viewer-ask")
    page.wait_for_selector(".chip .thumbnail >> nth=1")
    ask(page, "What is this?")
    part = server.requests[0]["messages"][0]["content"][1]["image_url"]["url"]
    cut = Image.open(io.BytesIO(base64.b64decode(part.split(",")[1])))
    assert cut.size == (60, 51)


def test_a_turned_photo_has_its_boxes_upright(page: Any, server: FakeServer) -> None:
    """A phone stores the picture lying on its side and says so in EXIF. Boxes are in pixels of the
    picture as people see it."""
    stored = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (200, 100), "grey").save(stored, "JPEG", exif=exif)
    size = {"original_size": [200, 100], "model_size": [196, 112], "num_tokens": 28}
    found = {
        "media": [{"kind": "image", "name": "photo.jpg", **size}],
        "boxes": [{"label": "top", "box": [10, 10, 90, 50], "picture": 0}],
    }
    server.replies = [Reply(["[…]"], last=found)]
    give(page, stored.getvalue(), "photo.jpg", "image/jpeg", "#scroller", "drop")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "What is at the top?")
    page.wait_for_function("() => document.querySelector('.marked img')?.complete")
    page.wait_for_timeout(50)
    drawn = canvas_of(page)
    assert drawn.height == pytest.approx(2 * drawn.width, abs=2)
    shown = page.eval_on_selector(".marked img", "(one) => [one.naturalWidth, one.naturalHeight]")
    assert shown == [100, 200]
