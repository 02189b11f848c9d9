"""A browser, the page in it, and a server that says what a test wants.

Every request to another host fails and is noted, and so is every breach of the page's policy and
every error of a script: a test that ends with one of them fails.

A module that has a `base_url` of its own tests the page of another server (`test_page_live.py`).
"""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from fake_server import FakeServer

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")
ARGUMENTS = [
    "--no-sandbox",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
]
NOTE_VIOLATIONS = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
    window.violations.push(`${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


def browser_path() -> str | None:
    named = os.environ.get("QWEN25VL_BROWSER")
    return named or next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="needs pip install playwright")
    path = browser_path()
    if path is None:
        pytest.skip(f"needs a browser: one of {', '.join(BROWSERS)}, or QWEN25VL_BROWSER=path")
    with playwright.sync_playwright() as running:
        launched = running.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield launched
        launched.close()


@pytest.fixture(scope="session")
def started_server() -> Iterator[FakeServer]:
    server = FakeServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def server(started_server: FakeServer) -> FakeServer:
    started_server.reset()
    return started_server


@pytest.fixture
def base_url(server: FakeServer) -> str:
    return server.url


@dataclass
class Watch:
    """What must not happen while a page is used."""

    foreign: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@pytest.fixture
def watch() -> Watch:
    return Watch()


@pytest.fixture
def context(browser: Any, base_url: str, watch: Watch) -> Iterator[Any]:
    """Of one test: its storage is its own."""
    own = browser.new_context(viewport={"width": 1280, "height": 800}, accept_downloads=True)
    own.set_default_timeout(20_000)
    own.add_init_script(NOTE_VIOLATIONS)
    own.grant_permissions(["clipboard-read", "clipboard-write"])

    def look(request: Any) -> None:
        if not request.url.startswith((base_url, "blob:", "data:")):
            watch.foreign.append(request.url)

    own.on("request", look)
    yield own
    own.close()


@pytest.fixture
def page(context: Any, base_url: str, watch: Watch) -> Iterator[Any]:
    """The page, loaded and connected."""
    opened = context.new_page()
    opened.on("pageerror", lambda error: watch.errors.append(str(error)))
    opened.goto(base_url)
    opened.wait_for_selector("#model:not(:empty)")
    yield opened
    violations = opened.evaluate("window.violations")
    assert (watch.foreign, watch.errors, violations) == ([], [], [])
