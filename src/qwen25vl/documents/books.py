"""Whole documents, once all their pages are there: a Markdown file of each, or a line of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

from qwen25vl.documents.journal import UNKNOWN, Entry, Journal, write_whole
from qwen25vl.documents.results import source_of, to_line, unfence


@dataclass
class Book:
    """A document of which pages are under way. slots: of its pages, in order."""

    slots: list[str] = field(default_factory=list)
    num_open: int = 0
    is_listed: bool = False
    is_changed: bool = False


class Shelf:
    """tell: is called with the name and the slots of a document once all its pages are done, and
    whether any was done now."""

    def __init__(self, tell: Callable[[str, list[str], bool], None] | None = None) -> None:
        self.tell = tell
        self.books: dict[str, Book] = {}

    def add(self, source: str, slot: str, *, is_done: bool) -> None:
        book = self.books.setdefault(source, Book())
        book.slots.append(slot)
        book.num_open += not is_done

    def close(self, source: str) -> None:
        """Of this document, all pages have been added."""
        if source in self.books:
            self.books[source].is_listed = True
            self.check(source)

    def done(self, source: str) -> None:
        book = self.books[source]
        book.num_open -= 1
        book.is_changed = True
        self.check(source)

    def check(self, source: str) -> None:
        book = self.books[source]
        if book.is_listed and not book.num_open:
            del self.books[source]
            if self.tell is not None:
                self.tell(source, book.slots, book.is_changed)


class MarkdownFolder:
    """A .md for each document. A page without an answer is a comment that says why."""

    def __init__(self, folder: Path, journal: Journal) -> None:
        self.folder, self.journal = folder, journal

    def write(self, source: str, slots: list[str], is_changed: bool) -> None:
        path = self.folder / markdown_name(source)
        if path.exists() and not is_changed:
            return
        with self.journal.telling():
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, self.parts(slots))

    def parts(self, slots: list[str]) -> Iterator[bytes]:
        for number, slot in enumerate(slots):
            line = self.journal.read(self.journal.entries[slot])
            text = page_text(line)
            yield ("\n\n" * (number > 0) + text).encode("utf-8", "replace")
        yield b"\n"


def page_text(line: dict[str, Any]) -> str:
    error = line["error"]
    if error is None:
        return unfence(line["text"] or "").strip()
    where = "" if line["page"] is None else f"page {line['page']}: "
    reason = f"{where}{error['kind']}: {error['message']}".replace("--", "- -")
    return f"<!-- {reason} -->"


def markdown_name(source: str) -> PurePath:
    """The name of the document below the folder, without a way out of it."""
    parts = [part for part in PurePath(source).parts if part not in ("/", "\\", ".")]
    parts = ["up" if part == ".." else part.replace(":", "_") for part in parts]
    return PurePath(*parts[:-1], f"{parts[-1] if parts else 'document'}.md")


def write_groups(path: Path, journal: Journal, *, is_settled: bool) -> None:
    """A line for each file, with the answers of its pages; is_settled: without what differs from
    run to run."""
    entries = [(slot, each) for slot, each in journal.entries.items() if each.place != UNKNOWN]
    entries.sort(key=lambda pair: pair[1].place)
    with journal.telling():
        write_whole(path, grouped(entries, journal, is_settled))


def grouped(
    entries: list[tuple[str, Entry]], journal: Journal, is_settled: bool
) -> Iterator[bytes]:
    pages: list[dict[str, Any]] = []
    for number, (slot, entry) in enumerate(entries):
        line = journal.read(entry)
        pages.append(journal.format.settle(line) if is_settled else line)
        following = entries[number + 1][0] if number + 1 < len(entries) else None
        if following is None or source_of(following) != source_of(slot):
            yield to_line(group_of(pages))
            pages = []


def group_of(pages: list[dict[str, Any]]) -> dict[str, Any]:
    source = pages[0]["source"]
    failed = [page for page in pages if page["error"] is not None]
    whole_failure = pages[0]["error"] if len(pages) == 1 and pages[0]["page"] is None else None
    kept = [{name: page[name] for name in page if name != "source"} for page in pages]
    return {
        "source": source,
        "num_pages": len(pages),
        "num_failed": len(failed),
        "error": whole_failure,
        "pages": kept,
    }
