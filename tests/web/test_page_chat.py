"""Asking, stopping, editing, repeating: what people do all day."""

import base64
import threading
from typing import Any

import pytest
from actions import EXAMPLES, answer, ask, drop, give, paste
from fake_server import FakeServer, Reply

pytestmark = pytest.mark.web


def test_a_dropped_picture_is_asked_about(page: Any, server: FakeServer) -> None:
    """The bytes that arrive are the file's own: a picture that is drawn and encoded anew has other
    pixels, and its boxes another size."""
    server.replies = [Reply(["An owl ", "and a *cat*."])]
    drop(page, EXAMPLES / "boxes.png")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "What is there?")
    message = server.requests[0]["messages"][0]
    picture, text = message["content"]
    data = base64.b64decode(picture["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert data == (EXAMPLES / "boxes.png").read_bytes()
    assert text == {"type": "text", "text": "What is there?"}
    assert answer(page) == "An owl and a cat."
    assert page.locator(".answer em").inner_text() == "cat"


def test_pasted_pictures_keep_their_order_and_can_be_moved(page: Any, server: FakeServer) -> None:
    """The order of the pictures is part of the question."""
    names = ["left.png", "right.png", "scene.png"]
    for number, name in enumerate(names):
        paste(page, EXAMPLES / name)
        page.wait_for_selector(f".chip .thumbnail >> nth={number}")
    page.locator(".thumbnail").nth(2).press("ArrowLeft")
    page.locator(".thumbnail").nth(0).press("Delete")
    titles = [item.get_attribute("title") for item in page.locator(".thumbnail").all()]
    assert titles == ["scene.png", "right.png"]
    ask(page, "What is different?")
    parts = server.requests[0]["messages"][0]["content"]
    sent = [part["image_url"]["url"].split(",")[1] for part in parts[:2]]
    assert [base64.b64decode(data) for data in sent] == [
        (EXAMPLES / title).read_bytes() for title in titles
    ]


def test_an_animated_picture_is_sent_as_a_clip(page: Any, server: FakeServer) -> None:
    """The model knows a GIF's movement only if it is a clip."""
    drop(page, EXAMPLES / "moves.gif", "image/gif")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "Which way does the car move?")
    part = server.requests[0]["messages"][0]["content"][0]
    assert part["video_url"]["url"].startswith("data:image/gif;base64,")


def test_what_is_no_picture_is_refused_in_words(page: Any) -> None:
    give(page, b"MZ not a picture", "setup.exe", "application/exe", "#scroller", "drop")
    alert = page.locator(".notice.error")
    assert "setup.exe is neither a picture, a PDF nor a clip." in alert.inner_text()
    assert alert.get_attribute("role") == "alert"


def test_stop_closes_the_connection_and_keeps_the_text(page: Any, server: FakeServer) -> None:
    """A server that is not told goes on writing for nobody. It notices the closed connection when
    it writes next."""
    hold = threading.Event()
    server.replies = [Reply(["One, ", "two"], hold=hold)]
    page.fill("#question", "Count.")
    page.press("#question", "Enter")
    page.locator("#log").get_by_text("One,").wait_for()
    page.keyboard.press("Escape")
    page.wait_for_selector(".answer:not([aria-busy])")
    for _ in range(100):
        if server.num_closed:
            break
        page.wait_for_timeout(20)
    hold.set()
    assert server.num_closed == 1
    assert answer(page) == "One,"
    assert "stopped" in page.locator(".cost").inner_text()
    ask(page, "Go on.")
    roles = [message["role"] for message in server.requests[1]["messages"]]
    assert roles == ["user", "assistant", "user"]


def test_edit_and_regenerate_lose_nothing(page: Any, server: FakeServer) -> None:
    """The old question and the old answer stay, one click away."""
    server.replies = [Reply(["first"]), Reply(["second"]), Reply(["third"])]
    ask(page, "Alpha?")
    page.click(".regenerate")
    page.locator("#log").get_by_text("second").wait_for()
    assert page.locator(".answer .branches").inner_text().strip() == "2/2"
    page.keyboard.press("Escape")
    page.locator(".question").hover()
    page.click("[aria-label='Edit the question']")
    assert page.input_value("#question") == "Alpha?"
    page.fill("#question", "Beta?")
    page.press("#question", "Enter")
    page.locator("#log").get_by_text("third").wait_for()
    sent = [request["messages"][-1]["content"] for request in server.requests]
    assert sent == ["Alpha?", "Alpha?", "Beta?"]
    page.click(".question [aria-label='Earlier version']")
    assert answer(page) == "second"
    page.click(".answer [aria-label='Earlier version']")
    assert answer(page) == "first"


def test_cost_and_stages_are_shown(page: Any, server: FakeServer) -> None:
    """Without the stage, ten seconds in the vision encoder look like a server that hangs."""
    hold = threading.Event()
    progress = [
        {"stage": "queued", "done": 0, "total": 0},
        {"stage": "images", "done": 1, "total": 2},
    ]
    server.replies = [Reply(["Done."], progress=progress, hold=hold)]
    page.fill("#question", "Go.")
    page.press("#question", "Enter")
    page.locator("#log").get_by_text("Looking at the pictures, 1 of 2 · ").wait_for()
    hold.set()
    page.wait_for_selector("details.cost")
    line = page.locator("details.cost summary").inner_text()
    assert "67 tokens in (30 cached) · 1 out" in line
    assert "81.4 tokens/s" in line
    page.click("details.cost summary")
    rows = page.locator("details.cost dl").inner_text().split("\n")
    assert rows[rows.index("Picture tokens") + 1] == "42"
    assert rows[rows.index("Vision encoder") + 1] == "0.03 s"


def test_settings_go_into_the_request(page: Any, server: FakeServer) -> None:
    """And an empty field sends nothing: the server's default holds."""
    page.keyboard.press("Alt+s")
    page.fill("#system", "Answer in one word.")
    for name, value in {"temperature": "0.5", "seed": "-3", "max_pixels": "200704"}.items():
        page.fill(f"#option-{name}", value)
    page.keyboard.press("Escape")
    ask(page, "Hello")
    body = server.requests[0]
    assert body["messages"][0] == {"role": "system", "content": "Answer in one word."}
    assert (body["temperature"], body["seed"]) == (0.5, -3)
    assert body["mm_processor_kwargs"] == {"max_pixels": 200704}
    assert "top_p" not in body
    assert "max_tokens" not in body
    assert body["stream"] is body["return_progress"] is True


def test_tokens_are_estimated_before_sending(page: Any) -> None:
    """The estimate is the processor's own rule (tests/web/test_page_parts.py compares)."""
    drop(page, EXAMPLES / "boxes.png")  # 196×168: 7×6 cells
    assert page.locator(".chip-cost").inner_text() == "42 tokens"


def test_who_scrolled_up_stays_there(page: Any, server: FakeServer) -> None:
    """Text that is read must not move away while more is written."""
    hold = threading.Event()
    server.replies = [Reply(["A line.\n\n"] * 60 + ["The end."], hold=hold)]
    page.fill("#question", "Write.")
    page.press("#question", "Enter")
    page.wait_for_function("() => document.querySelectorAll('.markdown p').length >= 60")
    page.wait_for_function(
        "() => { const s = document.querySelector('#scroller');"
        "return s.scrollTop + s.clientHeight >= s.scrollHeight - 2; }"
    )
    page.evaluate("document.querySelector('#scroller').scrollTop = 100")
    page.wait_for_selector("#latest:not([hidden])")
    hold.set()
    page.locator("#log").get_by_text("The end.").wait_for(state="attached")
    page.wait_for_selector(".answer:not([aria-busy])")
    assert page.evaluate("document.querySelector('#scroller').scrollTop") == 100
    page.click("#latest")
    assert page.evaluate("document.querySelector('#scroller').scrollTop") > 1000


def test_streamed_text_ends_up_as_if_given_whole(page: Any) -> None:
    """However the text is cut, the elements are the same, and what was done is not built again."""
    table = "| e | f |\n|---|---|\n| g | h |\n\n"
    text = f"# A\n\n- b\n- c\n\n  d\n\n{table}```x\n1\n\n2\n```\ni *j*\n\nk\r\nl"
    different = page.evaluate(
        """async (text) => {
            const { GrowingMarkdown, renderMarkdown } = await import("/page/render.js");
            const whole = renderMarkdown(text).innerHTML;
            const wrong = [];
            for (let size = 1; size <= text.length; size += 1) {
                const growing = new GrowingMarkdown();
                let first = null;
                for (let at = 0; at < text.length; at += size) {
                    growing.append(text.slice(at, at + size));
                    if (growing.numDone) first ??= growing.element.firstChild;
                }
                const isKept = !first || first === growing.element.firstChild;
                if (growing.element.innerHTML !== whole || !isKept) wrong.push(size);
            }
            return wrong;
        }""",
        text,
    )
    assert different == []


def test_copy_as_markdown(page: Any, server: FakeServer) -> None:
    server.replies = [Reply(["**bold** and `code`"])]
    ask(page, "Hello")
    page.click("[aria-label='Copy as Markdown']")
    assert page.evaluate("navigator.clipboard.readText()") == "**bold** and `code`"
    page.click("#copy-all")
    whole = page.evaluate("navigator.clipboard.readText()")
    assert whole == "# Hello\n\n## You\n\nHello\n\n## Model\n\n**bold** and `code`\n"


@pytest.mark.parametrize("index", range(3))
def test_an_example_asks_its_question(page: Any, server: FakeServer, index: int) -> None:
    """The first click of most people; the pictures are those of examples/."""
    button = page.locator(".examples button").nth(index)
    name = button.get_attribute("data-picture")
    button.click()
    page.wait_for_selector(".answer:not([aria-busy])")
    picture, text = server.requests[0]["messages"][0]["content"]
    data = base64.b64decode(picture["image_url"]["url"].split(",")[1])
    assert data == (EXAMPLES / name).read_bytes()
    assert f"> **{text['text']}**" in (EXAMPLES / "README.md").read_text(encoding="utf-8")
