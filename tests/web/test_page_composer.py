"""What is being written is never lost; clips and their frames."""

import base64
import io
import threading
from typing import Any

import pytest
from actions import EXAMPLES, answer, ask, drop, give
from fake_server import FakeServer, Reply
from PIL import Image
from videos import write_video

pytestmark = pytest.mark.web


def test_a_draft_comes_back_after_an_edit(page: Any, server: FakeServer) -> None:
    """Text and pictures that stood in the field before an older question was opened in it."""
    ask(page, "Alpha?")
    drop(page, EXAMPLES / "scene.png")
    page.wait_for_selector(".chip .thumbnail")
    page.fill("#question", "half a question")
    page.keyboard.press("Alt+e")
    assert page.input_value("#question") == "Alpha?"
    assert page.locator(".chip").count() == 0
    page.keyboard.press("Escape")
    assert page.input_value("#question") == "half a question"
    assert page.locator(".chip").count() == 1
    page.click("#new")
    assert page.input_value("#question") == "half a question"


def test_a_deleted_conversation_stays_deleted(page: Any, server: FakeServer) -> None:
    """Also while its answer is being written: the end of the answer must not save it again."""
    hold = threading.Event()
    server.replies = [Reply(["One, ", "two."], hold=hold)]
    page.fill("#question", "Count.")
    page.press("#question", "Enter")
    page.locator(".answer").get_by_text("One,").wait_for()
    page.locator("#conversations li").last.hover()
    page.click("[aria-label^='Delete']")
    page.click("#confirm-action")
    page.wait_for_selector("#empty:not([hidden])")
    hold.set()
    page.wait_for_timeout(200)
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    assert page.locator("#conversations .open").count() == 0


def test_a_reload_keeps_what_was_written(page: Any, server: FakeServer) -> None:
    """The conversation is shown again; the answer that was cut off by it is called stopped."""
    hold = threading.Event()
    server.replies = [Reply(["One, ", "two."], hold=hold)]
    page.fill("#question", "Count.")
    page.press("#question", "Enter")
    page.locator(".answer").get_by_text("One,").wait_for()
    page.wait_for_timeout(2200)  # it is saved every two seconds
    page.reload()
    hold.set()
    page.wait_for_selector(".answer:not([aria-busy])")
    assert answer(page) == "One,"
    assert "stopped" in page.locator(".cost").inner_text()


def test_a_clip_is_sent_and_gives_a_frame(page: Any, server: FakeServer) -> None:
    """A browser that cannot play it sends it all the same."""
    clip = write_video("vp8", "webm", times_ms=range(0, 1000, 100))
    give(page, clip, "clip.webm", "video/webm", "#scroller", "drop")
    page.wait_for_selector(".chip .thumbnail")
    assert page.locator(".chip-cost").inner_text() == "clip, 1.0 s"
    page.click(".chip .thumbnail")
    page.wait_for_function("() => document.querySelector('#clip-video').videoWidth === 96")
    page.click("#clip-dialog [value='yes']")
    page.wait_for_selector(".chip .thumbnail >> nth=1")
    ask(page, "What happens?")
    first, second = server.requests[0]["messages"][0]["content"][:2]
    assert first["video_url"]["url"].startswith("data:video/webm;base64,")
    data = base64.b64decode(first["video_url"]["url"].split(",")[1])
    assert data == clip
    frame = Image.open(io.BytesIO(base64.b64decode(second["image_url"]["url"].split(",")[1])))
    assert frame.size == (96, 64)


def test_a_picture_of_another_kind_becomes_png(page: Any, server: FakeServer) -> None:
    """AVIF, which the browser can show and the server does not read."""
    stored = io.BytesIO()
    Image.new("RGB", (40, 30), (200, 30, 30)).save(stored, "AVIF", quality=100)
    give(page, stored.getvalue(), "photo.avif", "image/avif", "#scroller", "drop")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "What is it?")
    url = server.requests[0]["messages"][0]["content"][0]["image_url"]["url"]
    sent = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert (sent.format, sent.size) == ("PNG", (40, 30))
