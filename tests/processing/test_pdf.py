"""PDF documents wherever pictures are taken."""

from __future__ import annotations

import builtins
import io
import json
import threading
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from media_files import document, drawn_document, encoded
from PIL import Image

import qwen25vl
from qwen25vl.answer import Answer, Timings, Usage
from qwen25vl.cli import main
from qwen25vl.errors import (
    DependencyError,
    MediaError,
    MediaFormatError,
    MediaNotFoundError,
    MediaSizeError,
    MessageError,
    UsageError,
)
from qwen25vl.grounding import Box, Point
from qwen25vl.processing.image import ImageSettings
from qwen25vl.processing.media import load_pages, load_picture
from qwen25vl.processing.messages import read_messages
from qwen25vl.processing.pdf import PdfPage, page_numbers, read_pages
from qwen25vl.processing.pdf_sources import find_document, open_pages
from qwen25vl.processing.prepare import prepare_picture
from qwen25vl.question import compose

PNG = Path(__file__).parents[2] / "examples" / "scene.png"


@pytest.fixture(scope="module")
def vlm() -> qwen25vl.VisionLanguageModel:
    return qwen25vl.load()


@pytest.fixture
def report(tmp_path: Path) -> Path:
    path = tmp_path / "report.pdf"
    path.write_bytes(document(9, width=60, height=40))
    return path


def scene() -> bytes:
    """A document whose only page is the example's picture, a point for each pixel."""
    file = io.BytesIO()
    Image.open(PNG).convert("RGB").save(file, "PDF", resolution=72)
    return file.getvalue()


def parts_of(*content: Any) -> list[Any]:
    (message,) = read_messages([{"role": "user", "content": list(content)}])
    return list(message.parts)


def numbers(*content: Any) -> list[int]:
    return [part.source.number for part in parts_of(*content)]


@pytest.mark.parametrize(
    ("pages", "expected"),
    [
        (None, [1, 2, 3, 4, 5, 6, 7, 8, 9]), (3, [3]), ("3", [3]), ("3-5", [3, 4, 5]),
        (" 2 , 4 - 5 ", [2, 4, 5]), ("8-", [8, 9]), ("-2", [1, 2]), ([9, 1], [9, 1]),
        (range(2, 4), [2, 3]), (["1-2", 5], [1, 2, 5]), ("2,2", [2, 2]),
    ],
)  # fmt: skip
def test_choice_of_pages(pages: Any, expected: list[int]) -> None:
    assert page_numbers(pages, 9, "a.pdf") == expected


@pytest.mark.parametrize(
    "pages",
    [0, -1, "0", "0-3", "5-3", "a", "1-2-3", "1.5", 1.5, True, "", [], "-", "٣", "10", "9-10"],
)
def test_no_such_page(pages: Any) -> None:
    """A choice that is none took the whole document, or page 1."""
    with pytest.raises(UsageError, match=r"pages"):
        page_numbers(pages, 9, "a.pdf")


def test_a_choice_of_very_many_pages() -> None:
    """A number of pages that a document only claims was made into a list."""
    for pages in (None, "1-2000000000", "1-9," * 100 + "1"):
        with pytest.raises(MediaSizeError, match="at most 256"):
            page_numbers(pages, 2_000_000_000, "a.pdf")


def test_every_shape_of_a_message(report: Path) -> None:
    data = report.read_bytes()
    for part in (
        {"type": "image", "image": str(report), "pages": "2-3"},
        {"type": "image", "image": report, "pages": [2, 3]},
        {"type": "image", "path": f"{report}#page=2-3"},
        {"type": "image", "url": f"file://{report}#page=2-3&zoom=100"},
        {"type": "image", "image": data, "pages": "2-3"},
        {"type": "image", "image": {"bytes": data, "path": "a"}, "pages": "2-3"},
        {"type": "image", "base64": encoded(data), "pages": "2-3"},
        {"type": "image_url", "image_url": {"url": f"data:application/pdf;base64,{encoded(data)}"},
         "pages": "2-3"},
        {"type": "image_url", "image_url": f"data:;base64,{encoded(data)}", "pages": "2-3"},
        {"type": "file", "file": {"file_data": encoded(data), "filename": "a.pdf"}, "pages": "2-3"},
        {"type": "file", "file": {"path": str(report), "pages": "2-3"}},
        {"type": "input_file", "file_data": f"data:application/pdf;base64,{encoded(data)}",
         "pages": "2-3"},
        {"path": f"{report}#page=2-3"},
    ):  # fmt: skip
        assert numbers(part) == [2, 3], part


def test_the_content_decides(report: Path, tmp_path: Path) -> None:
    """A scan without a suffix is a document, and a picture with the wrong one is a picture."""
    (tmp_path / "scan").write_bytes(report.read_bytes())
    assert len(numbers({"type": "image", "image": str(tmp_path / "scan")})) == 9
    wrong = tmp_path / "picture.pdf"
    wrong.write_bytes(PNG.read_bytes())
    (part,) = parts_of({"type": "image", "image": str(wrong)})
    assert part.source == str(wrong)
    odd = tmp_path / "a.pdf#page=2"
    odd.write_bytes(report.read_bytes())
    assert len(numbers({"type": "image", "image": str(odd)})) == 9
    with pytest.raises(MediaFormatError, match="a PNG picture"):
        parts_of({"type": "file", "file": {"path": str(wrong), "mime_type": "application/pdf"}})


def test_what_is_wrong_is_named(report: Path, tmp_path: Path) -> None:
    with pytest.raises(MessageError, match="part 1 has pages, but it is no PDF"):
        parts_of({"type": "image", "image": str(PNG), "pages": 1})
    with pytest.raises(UsageError, match="give only one"):
        parts_of({"type": "image", "image": f"{report}#page=2", "pages": 1})
    with pytest.raises(MediaNotFoundError, match=r"none\.pdf does not exist"):
        parts_of({"type": "image", "image": str(tmp_path / "none.pdf")})
    with pytest.raises(UsageError, match=r"page 12 of .*report\.pdf, which has 9 pages"):
        parts_of({"type": "image", "image": f"{report}#page=12"})
    with pytest.raises(UsageError, match="images has none"):
        compose("?", [str(PNG)], (), None, pages=1)
    with pytest.raises(UsageError, match="holds its own images"):
        compose([{"role": "user", "content": "?"}], (), (), None, pages=1)


@cache
def damaged() -> dict[str, tuple[bytes, type[MediaError]]]:
    whole = drawn_document(1)
    locked = encrypted()
    return {
        "cut off": (whole[: len(whole) // 2], MediaFormatError),
        "nothing": (b"%PDF-1.7\n", MediaFormatError),
        "no pages": (document(0), MediaFormatError),
        "encrypted": (locked, MediaFormatError),
        "a huge page": (document(1, 2e6, 10), MediaSizeError),
        "10,000 pages": (document(10_000), MediaSizeError),
    }


def encrypted() -> bytes:
    """A document with an unknown way of encryption, for which PDFium wants a password."""
    data = drawn_document(1)
    start = data.rindex(b"trailer")
    end = data.index(b"<<", start) + 2
    lock = (
        b" /Encrypt << /Filter /Standard /V 1 /R 2 /O <" + b"41" * 32 + b"> /U <" + b"42" * 32
        + b"> /P -4 >> /ID [<00><00>] "
    )  # fmt: skip
    return data[:end] + lock + data[end:]


@pytest.mark.parametrize("name", damaged())
def test_damaged_documents(name: str) -> None:
    data, kind = damaged()[name]
    with pytest.raises(kind, match=r"a\.pdf") as caught:
        read_pages(data, "a.pdf")
    assert "\n" not in str(caught.value)
    if name == "encrypted":
        assert "password" in str(caught.value)
    if name == "10,000 pages":
        assert [page.number for page in read_pages(data, "a.pdf", "9999-")] == [9999, 10_000]


def test_a_page_is_rendered_as_the_model_sees_it() -> None:
    """Rendered at another size, a page was resized a second time, and its letters blurred."""
    (page,) = read_pages(document(1, 595, 842), "a.pdf")
    assert page.pixels == (1684, 1190)
    settings = ImageSettings(min_pixels=56 * 56, max_pixels=28 * 28 * 300)
    prepared = prepare_picture(page, {}, settings)
    assert prepared.item.original_size == prepared.item.model_size
    height, width = prepared.item.model_size
    assert height * width <= 28 * 28 * 300
    assert (prepared.item.page, prepared.item.page_size) == (1, (842.0, 595.0))
    smaller = prepare_picture(page, {"max_pixels": 28 * 28 * 50}, settings)
    assert smaller.item.num_tokens <= 50
    (small,) = read_pages(document(1, 20, 20), "a.pdf")  # 40 × 40 pixels
    assert prepare_picture(small, {}, settings).item.model_size == (56, 56)


def test_the_pixels_are_the_page_s() -> None:
    """Red and blue were exchanged, and a page lay upside down."""
    picture = Image.new("RGB", (40, 20), "white")
    picture.paste((200, 30, 10), (0, 0, 20, 10))
    file = io.BytesIO()
    picture.save(file, "PDF", resolution=72, quality=100, subsampling=0)
    (page,) = read_pages(file.getvalue(), "a.pdf")
    values = page.render(40, 80)
    assert values.shape == (40, 80, 3)
    assert np.abs(values[10, 20].astype(int) - (200, 30, 10)).max() < 12
    for row, column in ((10, 60), (30, 20), (30, 60)):
        assert values[row, column].min() > 245
    assert page.render(28, 112)[7, 28, 0] > 150  # each side is scaled on its own


def test_many_threads_render_the_same(report: Path) -> None:
    """PDFium has one state for all threads."""
    data = drawn_document(4)
    expected = [page.render(56, 84) for page in read_pages(data, "a")]
    wrong: list[int] = []

    def work() -> None:
        for number, page in enumerate(read_pages(data, "a")):
            if not np.array_equal(page.render(56, 84), expected[number]):
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_load_pages(report: Path) -> None:
    assert [page.size for page in load_pages(report, pages="2-3")] == [(120, 80), (120, 80)]
    assert len(load_pages(report)) == 9
    (page,) = open_pages(report, 1) or []
    assert load_picture(page).size == (120, 80)
    assert load_pages(page)[0].size == (120, 80)
    with pytest.raises(UsageError, match="pages"):
        load_pages(PNG, pages=1)
    with pytest.raises(MediaFormatError, match="a PDF document"):
        load_picture(report)
    with pytest.raises(MediaSizeError, match="at most 100"):
        load_pages(report, pages=1, max_decoded_pixels=100)


def test_without_pypdfium2(monkeypatch: pytest.MonkeyPatch, report: Path) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **named: Any) -> Any:
        if name.startswith("pypdfium2"):
            raise ImportError(name)
        return real(name, *rest, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(DependencyError, match=r'pip install "qwen25vl\[pdf\]"'):
        open_pages(report)


def test_sources_that_are_no_documents(tmp_path: Path) -> None:
    for source in (
        PNG, str(PNG), "http://host/a.png#page=3", "data:image/png;base64,iVBORw0KGgo=", b"GIF89a",
        np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4), Image.new("RGB", (4, 4)), None, 3,
        tmp_path, str(tmp_path), "\0", "a" * 9000,
    ):  # fmt: skip
        assert find_document(source) is None
    assert find_document("https://host/a.PDF?x=1#page=2-3").pages == "2-3"  # type: ignore[union-attr]


def test_ask(vlm: qwen25vl.VisionLanguageModel, tmp_path: Path) -> None:
    """The page of a document gets the answer that its picture gets."""
    path = tmp_path / "scene.pdf"
    path.write_bytes(scene())
    sizes = {"max_pixels": 196 * 252, "max_new_tokens": 120}
    question = "Find every thing. Answer in JSON."
    alone = vlm.ask(question, images=[PNG], **sizes)
    answer = vlm.ask(question, images=[str(path)], pages=1, **sizes)
    assert [box.label for box in answer.boxes] == [box.label for box in alone.boxes]
    for box, other in zip(answer.boxes, alone.boxes, strict=True):
        points = answer.in_points(box)
        assert abs(points.x1 - other.x1) < 12
        assert abs(points.y2 - other.y2) < 12
    assert answer.draw().size == (252, 196)
    messages = [{"role": "user", "content": [{"type": "image", "image": path}, question]}]
    assert vlm.ask(messages, **sizes).text == answer.text
    assert isinstance(answer.sources[0], PdfPage)


def test_conversations(vlm: qwen25vl.VisionLanguageModel, report: Path) -> None:
    """A document is read when it is given; its file may go."""
    chat = vlm.chat()
    first = chat.ask("What is it?", images=str(report), pages="2,4", max_new_tokens=2)
    assert [item.page for item in first.media] == [2, 4]
    report.unlink()
    assert [item.page for item in chat.ask("And now?", max_new_tokens=2).media] == [2, 4]


def test_the_pipeline(vlm: qwen25vl.VisionLanguageModel, report: Path) -> None:
    ask = qwen25vl.pipeline("image-text-to-text", model=vlm.model, processor=vlm.processor)
    content = [{"type": "image", "image": str(report), "pages": 2}, {"type": "text", "text": "?"}]
    (record,) = ask(text=[{"role": "user", "content": content}], max_new_tokens=2)
    assert record["generated_text"][-1]["role"] == "assistant"


def test_the_command(report: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """`-i report.pdf#page=3` was taken for the question."""
    drawing = tmp_path / "drawing.png"
    source = f"{report}#page=3-4"
    assert main(["run", "-i", source, "Hi?", "--json", "--max-new-tokens", "2",
                 "--draw", str(drawing)]) == 0  # fmt: skip
    media = json.loads(capsys.readouterr().out)["media"]
    assert [item["page"] for item in media] == [3, 4]
    assert media[0]["page_size"] == {"width": 60.0, "height": 40.0}
    assert drawing.exists()
    assert main(["run", "Hi?", "-i", f"{report}#page=12"]) == 2
    assert "9 pages" in capsys.readouterr().err


def answer_about(item: Any) -> Answer:
    return Answer("", None, Usage(0, 0, 0), Timings(0, 0, 0, 0, 0), (item,), "", ())


def test_places_in_points() -> None:
    """Points have both sides scaled on their own, as the page was."""
    (page,) = read_pages(document(1, 100, 50), "a.pdf")
    prepared = prepare_picture(page, {"resized_height": 112, "resized_width": 280}, ImageSettings())
    answer = answer_about(prepared.item)
    assert answer.in_points(Box("a", 28, 56, 280, 112)) == Box("a", 10, 25, 100, 50)
    assert answer.in_points(Point("a", 140, 28)) == Point("a", 50, 12.5)
    picture = prepare_picture(PNG, {}, ImageSettings())
    with pytest.raises(UsageError, match="no page"):
        answer_about(picture.item).in_points(Point("a", 1, 2))
