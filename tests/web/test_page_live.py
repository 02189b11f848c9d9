"""The page of the real server with the built-in model, or of one named by QWEN25VL_PAGE_URL."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from actions import answer, ask
from live_server import NAME, Live

import qwen25vl
from qwen25vl.serving.settings import ServerSettings

pytestmark = pytest.mark.web

SECONDS = 60_000  # milliseconds that an answer may take


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    url = os.environ.get("QWEN25VL_PAGE_URL")
    if url is not None:
        yield url
        return
    live = Live(ServerSettings(port=0, model_names=(NAME,)), qwen25vl.load())
    yield f"{live.url}/"
    live.close()


def click_example(page: Any, index: int) -> None:
    page.locator(".examples button").nth(index).click()
    page.wait_for_selector(".answer:not([aria-busy])", timeout=SECONDS)


def test_the_models_boxes_are_drawn(page: Any) -> None:
    """The whole way: the picture's bytes, the model, its boxes in pixels of that picture."""
    click_example(page, 0)
    page.wait_for_selector(".marked .swatch", timeout=SECONDS)
    rows = page.locator(".rows tbody tr").all_inner_texts()
    assert [row.split("\t")[1] for row in rows] == ["owl", "cat"]
    assert "tokens in" in page.locator(".cost").inner_text()


def test_the_next_turn_reuses_the_first(page: Any) -> None:
    click_example(page, 2)
    assert "dog" in answer(page)
    page.set_default_timeout(SECONDS)
    ask(page, "What colour is the star?")
    assert answer(page) == "The star is purple."
    assert "cached" in page.locator(".cost").last.inner_text()


def test_a_server_that_refuses_says_why(page: Any) -> None:
    page.keyboard.press("Alt+s")
    page.fill("#option-max_pixels", "784")
    page.keyboard.press("Escape")
    page.locator(".examples button").first.click()
    page.wait_for_selector(".answer:not([aria-busy])", timeout=SECONDS)
    said = page.locator(".answer").inner_text()
    assert "tokens in" in said or "max_pixels" in said
