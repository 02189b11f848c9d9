"""For everybody: by keyboard alone, with a screen reader, on a phone, in the dark."""

from pathlib import Path
from typing import Any

import pytest
from actions import EXAMPLES, answer, ask, drop
from fake_server import FakeServer, Reply
from test_page_marks import FOUND

pytestmark = pytest.mark.web

AXE = Path(__file__).parents[2] / "build" / "web" / "node_modules" / "axe-core" / "axe.min.js"
SIZES = {"desktop": (1280, 800), "phone": (390, 844), "small phone": (320, 568)}
TEXT = """# Title

Some `code`, [a link](https://a.example/).

- one
- two

| a | b |
|---|---|
| 1 | 2 |
"""


def fill(page: Any, server: FakeServer) -> None:
    server.replies = [Reply(["[…]"], last=FOUND), Reply([TEXT])]
    drop(page, EXAMPLES / "boxes.png")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "Detect every animal in JSON.")
    ask(page, "Tell me more.")


def test_everything_by_keyboard(page: Any, server: FakeServer) -> None:
    """Ask, stop, repeat, edit, switch versions and start anew without a pointer. Each element that
    has the focus is visible."""
    server.replies = [Reply(["first"]), Reply(["second"]), Reply(["third"])]
    page.keyboard.type("Hello")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("there")
    page.keyboard.press("Enter")
    page.locator(".answer").get_by_text("first").wait_for()
    page.keyboard.press("Alt+r")
    page.locator(".answer").get_by_text("second").wait_for()
    page.wait_for_selector(".answer:not([aria-busy])")
    page.keyboard.press("ArrowUp")
    assert page.input_value("#question") == "Hello\nthere"
    page.keyboard.press("Escape")
    assert page.input_value("#question") == ""
    names = walk(page, 40)
    for wanted in ("Earlier version", "Answer again", "Copy as Markdown", "Settings", "Question"):
        assert any(wanted in name for name in names), (wanted, names)
    page.keyboard.press("Alt+n")
    assert page.is_visible("#empty")
    assert page.evaluate("document.activeElement.id") == "question"


def walk(page: Any, steps: int) -> list[str]:
    """The names of what the Tab key reaches."""
    names = []
    for _ in range(steps):
        page.keyboard.press("Tab")
        name, is_visible = page.evaluate(
            """() => {
                const node = document.activeElement;
                const area = node.getBoundingClientRect();
                const name = node.getAttribute("aria-label") || node.textContent.trim();
                return [name, area.width > 0 && area.height > 0 || node === document.body];
            }"""
        )
        assert is_visible, name
        names.append(name)
    return names


def test_a_screen_reader_hears_the_answer_once(page: Any, server: FakeServer) -> None:
    """A live region that grows token by token is read again and again; the answer is announced when
    it is complete."""
    server.replies = [Reply(["An ", "owl."])]
    ask(page, "What is it?")
    assert page.locator("#status").inner_text() == "Answer: An owl."
    assert page.get_attribute("#log", "aria-live") == "off"
    assert page.locator("article[aria-label='You']").count() == 1


@pytest.mark.parametrize("size", SIZES.values(), ids=list(SIZES))
def test_nothing_is_wider_than_the_window(
    page: Any, server: FakeServer, size: tuple[int, int]
) -> None:
    """A phone that has to scroll sideways is unusable."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    fill(page, server)
    wide = page.evaluate(
        """() => [...document.querySelectorAll("body *")].filter((node) => {
            const area = node.getBoundingClientRect();
            const isOpen = getComputedStyle(node).visibility === "visible";
            const isScrolled = node.closest("#sidebar, .hidden, .skip, pre, .table, .rows");
            return isOpen && !isScrolled && area.right > innerWidth + 1;
        }).map((node) => node.outerHTML.slice(0, 80))"""
    )
    assert wide == []
    if size[0] < 800:
        page.click("#menu")
        page.wait_for_selector("#new")
        page.click("#conversations .open")
        page.wait_for_function("() => getComputedStyle(window.sidebar).visibility === 'hidden'")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing(page: Any, server: FakeServer, theme: str) -> None:
    """Names, roles, order of headings, contrast (AA), in the conversation and in dialogs."""
    if not AXE.exists():
        pytest.skip("needs axe-core: make test-web")
    page.emulate_media(color_scheme=theme, reduced_motion="reduce")
    fill(page, server)
    page.evaluate(AXE.read_text(encoding="utf-8"))
    check_axe(page)
    for opening in ("Alt+s", "Alt+Slash"):
        page.keyboard.press(opening)
        page.wait_for_selector("dialog[open]")
        check_axe(page)
        page.keyboard.press("Escape")
    page.locator(".rows tbody tr").first.hover()
    page.keyboard.press("Alt+n")
    check_axe(page)


def check_axe(page: Any) -> None:
    found = page.evaluate(
        "axe.run(document, {resultTypes: ['violations']}).then((all) => all.violations.flatMap("
        "(one) => one.nodes.map((node) => `${one.id}: ${node.html} ${node.failureSummary}`)))"
    )
    assert found == [], "\n".join(found)


def test_the_theme_is_chosen_and_kept(page: Any) -> None:
    page.emulate_media(color_scheme="light")
    background = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(background)
    page.keyboard.press("Alt+s")
    page.check("[name='theme'][value='dark']")
    dark = page.evaluate(background)
    assert dark != light
    page.reload()
    assert page.evaluate(background) == dark


def test_answers_are_found_after_an_update(page: Any, server: FakeServer) -> None:
    """Typed text is not lost by opening and closing a dialog."""
    page.fill("#question", "half a question")
    page.keyboard.press("Alt+s")
    page.keyboard.press("Escape")
    assert page.input_value("#question") == "half a question"
    server.replies = [Reply(["fine"])]
    page.press("#question", "Enter")
    page.wait_for_selector(".answer:not([aria-busy])")
    assert answer(page) == "fine"
