"""Why an input has no answer: a word for programs, a sentence for people.

Errors of the package, of the operating system and of servers become the same few kinds.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass

KINDS = (
    "vanished", "permission", "unreadable", "empty", "broken", "encrypted", "not a picture",
    "too large", "too long", "out of memory", "deadline", "repetition", "cut off", "not JSON",
    "refused", "busy", "crash", "server",
)  # fmt: skip
AGAIN = ("out of memory", "deadline", "repetition", "busy", "crash", "server")
"""What another try may change."""
OF_CODE = (
    ("context_length_exceeded", "too long"),
    ("out_of_memory", "out of memory"),
    ("deadline", "deadline"),
    ("empty_", "empty"),
    ("_too_large", "too large"),
    ("too_many_", "too large"),
    ("_parse_error", "broken"),
    ("_media_type", "not a picture"),
    ("_format", "not a picture"),
    ("_not_found", "vanished"),
    ("failed_to_download", "vanished"),
    ("invalid_image", "broken"),
    ("invalid_file", "broken"),
    ("invalid_video", "broken"),
)


@dataclass(frozen=True)
class Failure:
    """status, code, body: where a server said so, its HTTP status, its code and its words."""

    kind: str
    message: str
    status: int | None = None
    code: str | None = None

    @property
    def may_pass(self) -> bool:
        """Whether another try may succeed."""
        return self.kind in AGAIN

    def describe(self) -> dict[str, str]:
        return {"kind": self.kind, "message": self.message}


class InputError(Exception):
    """An input that cannot be asked about."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure

    def __reduce__(self) -> tuple[type[InputError], tuple[Failure]]:
        return InputError, (self.failure,)


def of_system(error: OSError, name: str) -> Failure:
    """A file that cannot be read."""
    if isinstance(error, FileNotFoundError):
        return Failure("vanished", f"{name} is not there any more")
    if isinstance(error, PermissionError):
        return Failure("permission", f"{name} may not be read: permission denied")
    if error.errno == errno.EISDIR:
        return Failure("not a picture", f"{name} is a folder")
    return Failure("unreadable", f"{name} cannot be read: {error.strerror or error}")


def of_reply(status: int, code: str | None, message: str, name: str) -> Failure:
    """What a server answered instead of 200."""
    message = f"{name}: {message}"
    if "encrypted" in message:
        return Failure("encrypted", message, status, code)
    for part, kind in OF_CODE:
        if code and part in code:
            return Failure(kind, message, status, code)
    if status in (408, 504):
        return Failure("deadline", message, status, code)
    if status in (429, 503):
        return Failure("busy", message, status, code)
    kind = "server" if status >= 500 else "refused"
    return Failure(kind, message, status, code)
