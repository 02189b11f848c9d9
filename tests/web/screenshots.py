"""Draws docs/images/: the page with a conversation, in light, in dark and on a phone.

    python tests/web/screenshots.py

The answers are those of the built-in model, as examples/README.md has them.
"""

import sys
from pathlib import Path
from typing import Any

from actions import ask
from conftest import ARGUMENTS, browser_path
from fake_server import FakeServer, Reply
from test_page_marks import FOUND

IMAGES = Path(__file__).parents[2] / "docs" / "images"
DETECTED = """```json
[
\t{"bbox_2d": [11, 4, 50, 53], "label": "owl"},
\t{"bbox_2d": [60, 49, 134, 120], "label": "cat"}
]
```"""
RECEIPT = '```json\n{"milk": "1.20", "bread": "2.35", "apples": "3.10", "total": "6.65"}\n```'
SCENE = "A small carrot at the top right, a large dog on the left and a small purple star."
VIEWS: dict[str, tuple[int, int, str]] = {
    "page-light": (1280, 800, "light"),
    "page-dark": (1280, 800, "dark"),
    "page-phone": (390, 844, "light"),
}


def converse(page: Any, server: FakeServer) -> None:
    """Two earlier conversations for the list, then the one that is shown."""
    for example, text, found in ((2, SCENE, {}), (1, RECEIPT, {}), (0, DETECTED, FOUND)):
        server.replies = [Reply(text.split(" "), last=found, pause=0.01)]
        for index in range(len(server.replies[0].pieces) - 1):
            server.replies[0].pieces[index] += " "
        page.evaluate("document.querySelector('#new').click()")
        page.locator(".examples button").nth(example).click()
        page.wait_for_selector(".answer:not([aria-busy])")
    page.wait_for_selector(".marked .swatch")
    page.wait_for_timeout(300)


def draw(browser: Any, server: FakeServer, name: str) -> None:
    width, height, scheme = VIEWS[name]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    page.goto(server.url)
    page.wait_for_selector("#model:not(:empty)")
    converse(page, server)
    if name == "page-dark":
        server.replies = [Reply(["The cat is to the right of the owl, so no."])]
        ask(page, "Is the cat to the left of the owl?")
        page.wait_for_timeout(300)
    page.locator(".rows tbody tr").last.hover()
    page.wait_for_timeout(100)
    page.screenshot(path=IMAGES / f"{name}.png")
    context.close()


def main() -> int:
    from playwright.sync_api import sync_playwright

    path = browser_path()
    if path is None:
        print("no browser: QWEN25VL_BROWSER=path names one", file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    server = FakeServer()
    server.start()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        for name in VIEWS:
            draw(browser, server, name)
        browser.close()
    server.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
