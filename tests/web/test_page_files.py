"""Pages of a PDF, the camera, and conversations that stay in the browser or leave it as a file."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from actions import EXAMPLES, answer, ask, drop, give
from fake_server import FakeServer, Reply
from PIL import Image

pytestmark = pytest.mark.web

PDF = b"%PDF-1.4\nnot read by the fake server"


def page_picture(number: int) -> str:
    stored = io.BytesIO()
    Image.new("RGB", (61, 86), (255, 255 - 20 * number, 255)).save(stored, "PNG")
    return f"data:image/png;base64,{base64.b64encode(stored.getvalue()).decode()}"


def plan_pdf(server: FakeServer, num_pages: int) -> None:
    pages = [
        {"number": number, "width": 595, "height": 842, "image": page_picture(number)}
        for number in range(1, num_pages + 1)
    ]
    for later in pages[6:]:
        del later["image"]  # as of a long document's
    server.pdf = {"num_pages": num_pages, "pages": pages}


def drop_pdf(page: Any) -> None:
    give(page, PDF, "report.pdf", "application/pdf", "#scroller", "drop")


def test_pages_of_a_pdf_are_chosen(page: Any, server: FakeServer) -> None:
    """By clicks, by Shift and a click, or as numbers; the server gets the document and the list."""
    plan_pdf(server, 8)
    drop_pdf(page)
    page.wait_for_selector("#pdf-dialog[open]")
    assert page.input_value("#pdf-range") == "1"
    page.click("[aria-label='Page 3']")
    page.click("[aria-label='Page 5']", modifiers=["Shift"])
    assert page.input_value("#pdf-range") == "1,3-5"
    page.fill("#pdf-range", "2-3, 9")
    assert page.get_attribute("#pdf-range", "aria-invalid") == "true"
    page.fill("#pdf-range", "2-3, 7")
    assert page.locator("#pdf-pages [aria-pressed='true']").count() == 3
    assert page.locator("#pdf-count").inner_text() == "3 of 8 chosen"
    page.click("#pdf-add")
    assert page.locator(".thumbnail").get_attribute("title") == "report.pdf, pages 2-3,7 of 8"
    ask(page, "Sum up.")
    part = server.requests[0]["messages"][0]["content"][0]
    assert part["type"] == "file"
    assert part["file"]["pages"] == "2-3,7"
    assert part["file"]["filename"] == "report.pdf"
    data = part["file"]["file_data"].removeprefix("data:application/pdf;base64,")
    assert base64.b64decode(data) == PDF


def test_no_page_no_attachment(page: Any, server: FakeServer) -> None:
    plan_pdf(server, 3)
    drop_pdf(page)
    page.click("#pdf-none")
    assert page.is_disabled("#pdf-add")
    page.click("#pdf-dialog [data-close]")
    page.wait_for_selector(".chip", state="detached")  # the one that said it was being read


def test_marks_on_a_page_of_a_pdf(page: Any, server: FakeServer) -> None:
    """The second chosen page is the second picture, drawn over its thumbnail."""
    plan_pdf(server, 2)
    size = {"original_size": [1684, 1190], "model_size": [840, 588], "num_tokens": 630}
    media = [{"kind": "page", "name": "report.pdf", "page": n, **size} for n in (1, 2)]
    boxes = [{"label": "title", "box": [119, 168, 1071, 842], "picture": 1}]
    server.replies = [Reply(["[…]"], last={"media": media, "boxes": boxes})]
    drop_pdf(page)
    page.click("#pdf-add")
    ask(page, "Where is the title?")
    page.wait_for_selector(".marked .swatch")
    assert page.locator(".marked .bar").inner_text().strip() == "report.pdf, page 2"
    assert page.get_attribute(".marked img", "src") == page_picture(2)
    assert page.locator(".rows code").inner_text() == "119, 168, 1071, 842"
    page.click("[aria-label='Ask about this title']")  # of 61×86 pixels, as the page is drawn
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "What does it say?")
    url = server.requests[1]["messages"][-1]["content"][0]["image_url"]["url"]
    cut = Image.open(io.BytesIO(base64.b64decode(url.split(",")[1])))
    assert cut.size == (49, 35)
    assert cut.convert("RGB").getpixel((20, 20)) == (255, 215, 255)


def test_the_camera_takes_a_picture(page: Any, server: FakeServer) -> None:
    """Chromium's own test picture; the camera is off afterwards."""
    page.click("#camera")
    page.wait_for_function("() => document.querySelector('#camera-video').videoWidth > 0")
    page.click("#camera-dialog [value='yes']")
    page.wait_for_selector(".chip .thumbnail")
    assert page.evaluate("document.querySelector('#camera-video').srcObject") is None
    ask(page, "What is this?")
    url = server.requests[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).format == "JPEG"


def test_a_conversation_survives_a_reload(page: Any, server: FakeServer) -> None:
    """With its pictures, which the next question sends again."""
    server.replies = [Reply(["A scene."])]
    drop(page, EXAMPLES / "scene.png")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "Describe the picture.")
    page.reload()
    page.wait_for_selector("#model:not(:empty)")
    page.click("#conversations .open")
    assert answer(page) == "A scene."
    page.wait_for_function("() => document.querySelector('.shown img').naturalWidth > 0")
    ask(page, "And now?")
    parts = server.requests[1]["messages"][0]["content"]
    data = base64.b64decode(parts[0]["image_url"]["url"].split(",")[1])
    assert data == (EXAMPLES / "scene.png").read_bytes()


def test_export_and_import_lose_nothing(page: Any, server: FakeServer, tmp_path: Path) -> None:
    """Both versions of an answer, the settings of the conversation, the bytes of the picture."""
    server.replies = [Reply(["first"]), Reply(["second"])]
    drop(page, EXAMPLES / "scene.png")
    page.wait_for_selector(".chip .thumbnail")
    page.keyboard.press("Alt+s")
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    ask(page, "Describe the picture.")
    page.click(".regenerate")
    page.locator(".answer").get_by_text("second").wait_for()
    page.wait_for_selector(".answer:not([aria-busy])")
    with page.expect_download() as started:
        page.click("#export")
    started.value.save_as(tmp_path / "saved.json")
    page.keyboard.press("Alt+s")
    page.click("#clear")
    page.click("#confirm-action")
    page.wait_for_selector("#empty:not([hidden])", state="attached")
    page.keyboard.press("Escape")
    assert page.locator("#conversations .open").count() == 0
    page.set_input_files("#import-file", tmp_path / "saved.json")
    page.wait_for_selector(".answer")
    assert answer(page) == "second"
    page.wait_for_function("() => document.querySelector('.shown img').naturalWidth > 0")
    with page.expect_download() as again:
        page.click("#export")
    again.value.save_as(tmp_path / "again.json")
    before, after = (
        content_of(json.loads((tmp_path / name).read_text(encoding="utf-8")))
        for name in ("saved.json", "again.json")
    )
    assert before == after
    assert before["texts"] == ["Describe the picture.", "first", "second"]
    assert before["files"] == [base64.b64encode((EXAMPLES / "scene.png").read_bytes()).decode()]


def content_of(exported: dict[str, Any]) -> dict[str, Any]:
    """Without the ids, which an import gives anew."""
    (conversation,) = exported["conversations"]
    nodes = list(conversation["nodes"].values())
    return {
        "system": conversation["system"],
        "texts": [node["text"] for node in nodes],
        "usage": [node.get("usage") for node in nodes],
        "seconds": [node.get("seconds") for node in nodes],
        "files": [url.split(",")[1] for url in exported["files"].values()],
    }


def test_a_deleted_conversation_takes_its_files_along(page: Any, server: FakeServer) -> None:
    """Pictures that nobody sees any more must not fill the browser."""
    drop(page, EXAMPLES / "scene.png")
    page.wait_for_selector(".chip .thumbnail")
    ask(page, "Describe the picture.")
    assert count_files(page) == 1
    page.locator("#conversations li").last.hover()
    page.click("[aria-label^='Delete']")
    page.click("#confirm-action")
    page.wait_for_selector("#empty:not([hidden])")
    assert count_files(page) == 0


def count_files(page: Any) -> int:
    return int(
        page.evaluate(
            """() => new Promise((resolve) => {
                const opening = indexedDB.open("qwen25vl");
                opening.onsuccess = () => {
                    const files = opening.result.transaction("files").objectStore("files").count();
                    files.onsuccess = () => resolve(files.result);
                };
            })"""
        )
    )


def test_the_oldest_conversations_make_room(page: Any) -> None:
    """The bound holds, the conversation in use stays, and the titles of what went are told."""
    gone = page.evaluate(
        """async () => {
            const { Store, MAX_BYTES } = await import("/page/store.js");
            const store = new Store(null);
            const make = (id, updated, bytes) => ({ id, title: id, updated, chosen: {}, nodes: {
                n: { id: "n", text: "", attachments: [{ file: id, bytes }] } } });
            await store.save(make("old", 1, MAX_BYTES * 0.4));
            await store.save(make("middle", 2, MAX_BYTES * 0.4));
            const gone = await store.save(make("new", 3, MAX_BYTES * 0.9));
            return [gone.map((one) => one.title), await store.bytes() <= MAX_BYTES];
        }"""
    )
    assert gone == [["old", "middle"], True]
