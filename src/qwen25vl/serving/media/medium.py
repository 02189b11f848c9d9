"""What a request's picture, clip, frames or page become once their bytes are here."""

from __future__ import annotations

from typing import Literal

Noun = Literal["image", "video", "file"]
Form = Literal["picture", "clip", "frames", "page"]


class Medium:
    """The source of a part of a message: bytes in memory, never an address or a path.

    contents: the file, or each frame. param: where it stands in the request. page: its number in
    the document, from 1. It is no dataclass, because readers of messages take those for messages.
    """

    __slots__ = ("contents", "form", "page", "param")

    def __init__(
        self, form: Form, contents: tuple[bytes, ...], param: str, page: int | None = None
    ) -> None:
        self.form, self.contents, self.param, self.page = form, contents, param, page

    def __repr__(self) -> str:
        size = sum(map(len, self.contents))
        return f"Medium({self.form}, {size} bytes, {self.param})"

    @property
    def name(self) -> str:
        return self.param if self.page is None else f"{self.param}, page {self.page}"

    @property
    def noun(self) -> Noun:
        """The word of error codes."""
        nouns: dict[Form, Noun] = {"picture": "image", "page": "file"}
        return nouns.get(self.form, "video")


CODES: dict[str, str] = {
    "base64": "invalid_base64_{}",
    "url": "invalid_{}_url",
    "content": "invalid_{}",
    "format": "invalid_{}_format",
    "unsupported": "unsupported_{}_media_type",
    "parse": "{}_parse_error",
    "large": "{}_too_large",
    "memory": "{}_too_large",
    "bytes": "{}_file_too_large",
    "empty": "empty_{}_file",
    "download": "failed_to_download_{}",
    "missing": "{}_file_not_found",
    "many": "too_many_{}s",
}
"""What is wrong, and OpenAI's code for it where the noun is image."""


def code_of(fault: str, noun: Noun) -> str:
    return CODES[fault].format(noun)
