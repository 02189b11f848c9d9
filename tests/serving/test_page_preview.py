"""POST /page/pdf: what the page's chooser and its viewer need of a document."""

import base64
import io
from typing import Any

import pytest
from PIL import Image


@pytest.fixture(scope="module")
def document() -> bytes:
    """Three pages of 200 × 100, 100 × 200 and 50 × 50 points."""
    pages = [Image.new("RGB", size, "red") for size in ((200, 100), (100, 200), (50, 50))]
    stored = io.BytesIO()
    pages[0].save(stored, "PDF", save_all=True, append_images=pages[1:], resolution=72)
    return stored.getvalue()


def picture_of(page: dict[str, Any]) -> Image.Image:
    head, data = page["image"].split(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_all_pages_small(live: Any, document: bytes) -> None:
    reply = live.http.post("/page/pdf", content=document).json()
    assert reply["num_pages"] == 3
    sizes = [(page["number"], page["width"], page["height"]) for page in reply["pages"]]
    assert sizes == [(1, 200, 100), (2, 100, 200), (3, 50, 50)]
    for page in reply["pages"]:
        width, height = picture_of(page).size
        assert width * height <= 48_000
        assert width / height == pytest.approx(page["width"] / page["height"], rel=0.03)


def test_one_page_large(live: Any, document: bytes) -> None:
    """The page's viewer draws it in the pixels that boxes are in: two for each point."""
    reply = live.http.post("/page/pdf?page=2", content=document).json()
    assert reply["num_pages"] == 3
    (page,) = reply["pages"]
    assert page["number"] == 2
    assert picture_of(page).size == (200, 400)


@pytest.mark.parametrize("page", ["0", "4", "x", "", "1,2", "-1"])
def test_no_such_page(live: Any, document: bytes, page: str) -> None:
    reply = live.http.post("/page/pdf", params={"page": page}, content=document)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "page"


def test_models_state_the_budget_of_pixels(live: Any) -> None:
    """From which the page tells what a picture will cost."""
    (model,) = live.http.get("/v1/models").json()["data"]
    settings = live.vlm.processor.image_processor.settings
    assert (model["min_pixels"], model["max_pixels"]) == (settings.min_pixels, settings.max_pixels)
