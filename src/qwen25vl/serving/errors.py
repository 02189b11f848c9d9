"""What is wrong with a request, in the shape and the words that OpenAI's clients understand.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

Clients choose their exception class by the status, shorten a conversation by the code
"context_length_exceeded", and try again after 408, 409, 429 and 5xx unless `x-should-retry` says
"false".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from qwen25vl.errors import (
    ContextLengthError,
    DeadlineError,
    MediaFormatError,
    MediaNotFoundError,
    MediaSizeError,
    OutOfMemoryError,
    Qwen25VLError,
    SchemaError,
    UsageError,
)

INVALID, SERVER, BUSY = "invalid_request_error", "server_error", "rate_limit_error"
RETRIED = (408, 409, 429)  # and all from 500
OF_PACKAGE: tuple[tuple[type[Qwen25VLError], int, str | None], ...] = (
    (ContextLengthError, 400, "context_length_exceeded"),
    (MediaNotFoundError, 400, "failed_to_download_image"),
    (MediaSizeError, 400, "image_too_large"),
    (MediaFormatError, 400, "invalid_image"),
    (OutOfMemoryError, 400, "out_of_memory"),
    (DeadlineError, 408, "deadline_exceeded"),
    (SchemaError, 400, "invalid_schema"),
    (UsageError, 400, None),
)


class ApiError(Exception):
    """An answer other than 2xx.

    param: the field that is wrong, as `messages[2].content[0].image_url.url`. retry_after: seconds
    after which the same request may succeed; without it the client is told not to try again.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = INVALID,
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind = status, message, kind
        self.param, self.code, self.retry_after = param, code, retry_after

    def body(self) -> dict[str, Any]:
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    @property
    def named_message(self) -> str:
        """The message with its field, for clients that have no other place for this."""
        is_named = not self.param or self.param in self.message
        return self.message if is_named else f"{self.param}: {self.message}"

    def headers(self) -> dict[str, str]:
        if self.retry_after is not None:
            return {"retry-after": str(max(1, round(self.retry_after)))}
        if self.status in RETRIED or self.status >= 500:
            return {"x-should-retry": "false"}
        return {}


@contextmanager
def renaming(names: Mapping[str, str]) -> Iterator[None]:
    """Errors about a request that was translated name the fields of the one that came. names: from
    the translated field to that one; what follows a name stays, and the first that fits counts."""
    try:
        yield
    except ApiError as error:
        param = error.param or ""
        for name, own in names.items():
            if param == name or param.startswith((f"{name}.", f"{name}[")):
                error.param = own + param.removeprefix(name)
                error.message = error.message.replace(param, error.param, 1)
                break
        raise


def of_error(error: Exception, param: str | None = None) -> ApiError:
    """An error of this package as an answer; anything else is a fault of the server, about which
    the client learns nothing."""
    if isinstance(error, ApiError):
        return error
    for kind, status, code in OF_PACKAGE:
        if isinstance(error, kind):
            return ApiError(status, str(error), param=param, code=code)
    message = "The server failed on this request; its log has the reason."
    return ApiError(500, message, kind=SERVER, code="internal_error")
