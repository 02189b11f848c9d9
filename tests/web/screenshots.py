"""Draws docs/images/: the page with a conversation, in light, in dark and on a phone.

    PYTHONPATH=tests python tests/web/screenshots.py

The real server answers with the built-in model, so every word and every figure is its own.
"""

import sys
from pathlib import Path
from typing import Any

from actions import ask
from conftest import ARGUMENTS, browser_path

IMAGES = Path(__file__).parents[2] / "docs" / "images"
VIEWS: dict[str, tuple[int, int, str]] = {
    "page-light": (1280, 800, "light"),
    "page-dark": (1280, 800, "dark"),
    "page-phone": (390, 844, "light"),
}


def converse(page: Any) -> None:
    """Two earlier conversations for the list, then the one that is shown."""
    for example in (2, 1, 0):
        page.evaluate("document.querySelector('#new').click()")
        page.locator(".examples button").nth(example).click()
        page.wait_for_selector(".answer:not([aria-busy])")
    page.wait_for_selector(".marked .swatch")
    page.wait_for_timeout(300)


def draw(browser: Any, url: str, name: str) -> None:
    width, height, scheme = VIEWS[name]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    context.set_default_timeout(60_000)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#model:not(:empty)")
    converse(page)
    if name == "page-dark":
        ask(page, "Is there a bus in the picture?")
        page.wait_for_timeout(300)
    page.locator(".rows tbody tr").last.hover()
    page.wait_for_timeout(100)
    page.screenshot(path=IMAGES / f"{name}.png")
    context.close()


def main() -> int:
    from live_server import Live  # here, as the server's workers import this file
    from playwright.sync_api import sync_playwright

    import qwen25vl
    from qwen25vl.serving.settings import ServerSettings

    path = browser_path()
    if path is None:
        print("no browser: QWEN25VL_BROWSER=path names one", file=sys.stderr)
        return 1
    IMAGES.mkdir(exist_ok=True)
    live = Live(ServerSettings(port=0, model_names=("qwen25vl-demo",)), qwen25vl.load())
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        for name in VIEWS:
            draw(browser, f"{live.url}/", name)
        browser.close()
    live.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
