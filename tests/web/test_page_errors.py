"""What goes wrong is said, in the server's words, and nothing that was written is lost."""

import threading
from typing import Any

import pytest
from actions import answer, ask
from fake_server import FakeServer, Reply

pytestmark = pytest.mark.web


def test_a_refusal_is_shown_in_the_servers_words(page: Any, server: FakeServer) -> None:
    server.replies = [Reply([], status=400, error="The picture has 0 pixels."), Reply(["Fine."])]
    ask(page, "Hello")
    box = page.locator(".error-box")
    assert "The picture has 0 pixels." in box.inner_text()
    assert box.get_attribute("role") == "alert"
    box.get_by_text("Try again").click()
    page.locator(".answer").get_by_text("Fine.").wait_for()
    assert len(server.requests) == 2


def test_an_error_within_the_stream(page: Any, server: FakeServer) -> None:
    """What was written before stays."""
    server.replies = [Reply(["Half an "], error="The engine ran out of memory.")]
    ask(page, "Hello")
    assert answer(page) == "Half an"
    assert "The engine ran out of memory." in page.locator(".error-box").inner_text()


def test_a_cut_connection_is_no_finished_answer(page: Any, server: FakeServer) -> None:
    server.replies = [Reply(["Half an "], is_cut=True)]
    ask(page, "Hello")
    assert answer(page) == "Half an"
    assert "was cut before the answer was complete" in page.locator(".error-box").inner_text()


def test_an_end_without_a_reason_is_no_end(page: Any, server: FakeServer) -> None:
    """A server in between may close a stream properly that its own server left half way."""
    server.replies = [Reply(["Half an "], finish="")]
    ask(page, "Hello")
    assert "ended the answer without a reason" in page.locator(".error-box").inner_text()


def test_a_busy_server_is_asked_again(page: Any, server: FakeServer) -> None:
    """After the time that it names, counted down where people see it."""
    busy = Reply([], status=429, headers={"retry-after": "1"}, error="32 requests wait.")
    server.replies = [busy, Reply(["At last."])]
    page.fill("#question", "Hello")
    page.press("#question", "Enter")
    page.locator(".stage").get_by_text("32 requests wait. Trying again in 1 s.").wait_for()
    page.locator(".answer").get_by_text("At last.").wait_for()
    assert len(server.requests) == 2
    page.wait_for_selector(".answer:not([aria-busy])")


def test_stop_ends_the_waiting_too(page: Any, server: FakeServer) -> None:
    server.replies = [Reply([], status=429, headers={"retry-after": "60"}, error="Busy.")]
    page.fill("#question", "Hello")
    page.press("#question", "Enter")
    page.locator(".stage").get_by_text("Trying again in").wait_for()
    page.click("#send")
    page.wait_for_selector(".answer:not([aria-busy])")
    assert len(server.requests) == 1


def test_an_answer_at_the_token_limit_says_so(page: Any, server: FakeServer) -> None:
    server.replies = [Reply(["Long"], finish="length")]
    ask(page, "Hello")
    assert "cut at the token limit" in page.locator(".cost").inner_text()


def test_the_key_is_asked_for_and_forgotten_with_the_tab(context: Any, server: FakeServer) -> None:
    """A wrong key is said to be wrong; the right one is kept in the session's storage only."""
    server.key = "right"
    opened = context.new_page()
    opened.goto(server.url)
    opened.wait_for_selector("#key-dialog[open]")
    assert opened.is_hidden("#key-wrong")
    opened.fill("#key-field", "wrong")
    opened.press("#key-field", "Enter")
    opened.wait_for_selector("#key-wrong:not([hidden])")
    opened.fill("#key-field", "right")
    opened.press("#key-field", "Enter")
    opened.wait_for_selector("#model:not(:empty)")
    server.replies = [Reply(["Come in."])]
    ask(opened, "Hello")
    assert answer(opened) == "Come in."
    assert opened.evaluate("JSON.stringify(localStorage)").find("right") < 0
    opened.reload()
    opened.wait_for_selector("#model:not(:empty)")
    other = context.new_page()
    other.goto(server.url)
    other.wait_for_selector("#key-dialog[open]")
    assert opened.evaluate("window.violations") == []


def test_a_server_that_is_away_is_found_again(page: Any, server: FakeServer) -> None:
    page.route("**/v1/**", lambda route: route.abort())
    ask(page, "Hello")
    assert "does not answer" in page.locator(".error-box").inner_text()
    page.reload()
    page.wait_for_selector("#offline:not([hidden])")
    page.unroute("**/v1/**")
    page.click("#reconnect")
    page.wait_for_selector("#model:not(:empty)")
    assert page.is_hidden("#offline")


def test_an_answer_goes_on_in_the_background(page: Any, server: FakeServer) -> None:
    """Another conversation may be opened meanwhile; the answer is found where it belongs."""
    hold = threading.Event()
    server.replies = [Reply(["One, ", "two."], hold=hold), Reply(["Other."])]
    page.fill("#question", "Count.")
    page.press("#question", "Enter")
    page.locator(".answer").get_by_text("One,").wait_for()
    page.click("#new")
    ask(page, "Something else.")
    assert answer(page) == "Other."
    page.locator("#conversations").get_by_text("Count.").click()
    assert answer(page) == "One,"
    hold.set()
    page.wait_for_selector(".answer:not([aria-busy])")
    assert answer(page) == "One, two."
