"""What people do on the page, in one call each."""

import base64
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[2] / "examples"
GIVE_FILE = """
({base64, name, type, target, kind}) => {
    const bytes = Uint8Array.from(atob(base64), (char) => char.charCodeAt(0));
    const data = new DataTransfer();
    data.items.add(new File([bytes], name, {type}));
    const options = {bubbles: true, cancelable: true};
    const make = (event) => kind === "paste"
        ? new ClipboardEvent(event, {...options, clipboardData: data})
        : new DragEvent(event, {...options, dataTransfer: data});
    const events = kind === "paste" ? ["paste"] : ["dragenter", "dragover", "drop"];
    for (const event of events) document.querySelector(target).dispatchEvent(make(event));
}
"""


def give(page: Any, content: bytes, name: str, type: str, target: str, kind: str) -> None:
    values = {"base64": base64.b64encode(content).decode(), "name": name, "type": type}
    page.evaluate(GIVE_FILE, {**values, "target": target, "kind": kind})


def drop(page: Any, path: Path, type: str = "image/png") -> None:
    give(page, path.read_bytes(), path.name, type, "#scroller", "drop")


def paste(page: Any, path: Path, type: str = "image/png") -> None:
    give(page, path.read_bytes(), path.name, type, "#question", "paste")


def ask(page: Any, question: str) -> None:
    """Returns when the answer is over."""
    before = page.locator(".answer").count()
    page.fill("#question", question)
    page.press("#question", "Enter")
    page.wait_for_selector(f".answer:not([aria-busy]) >> nth={before}")


def answer(page: Any, index: int = -1) -> str:
    """The text of one of the answers that are shown."""
    return str(page.locator(".answer .markdown").nth(index).inner_text())
