"""The body of a request as one of the models in `wire`."""

from __future__ import annotations

import asyncio
import math
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from qwen25vl.serving.errors import ApiError

LARGE_BYTES = 64 * 1024  # from here on, parsing is done in a thread
T = TypeVar("T", bound=BaseModel)


async def read_body(request: Request, kind: type[T]) -> T:
    """The body, whatever its content type says. Raises ApiError for the first wrong field."""
    raw = await request.body()
    if len(raw) < LARGE_BYTES:
        return parse(raw, kind)
    return await asyncio.to_thread(parse, raw, kind)


def parse(raw: bytes, kind: type[T]) -> T:
    try:
        return kind.model_validate_json(raw)
    except ValidationError as error:
        raise wrong_field(error) from None


def wrong_field(error: ValidationError) -> ApiError:
    """The first thing that is wrong, with the path of its field."""
    first: Any = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return ApiError(400, f"The body is not valid JSON: {first['msg']}", code="invalid_json")
    param = path(first["loc"])
    if first["type"] == "missing":
        message = f"Missing required parameter: '{param}'."
        return ApiError(400, message, param=param, code="missing_required_parameter")
    code = "invalid_type" if "type" in first["type"] else "invalid_value"
    return ApiError(400, f"Invalid '{param}': {first['msg']}.", param=param, code=code)


def path(places: tuple[int | str, ...]) -> str:
    """messages[0].role of ("messages", 0, "role"); the names of variants of a type are left out."""
    shown = ""
    for place in places:
        if isinstance(place, int):
            shown += f"[{place}]"
        elif place.isidentifier() and place not in ("str", "list", "dict", "int", "float"):
            shown += f".{place}" if shown else place
    return shown or "body"


def client_seconds(request: Request) -> float | None:
    """After how many seconds without an answer OpenAI's clients give up, as they say it."""
    try:
        seconds = float(request.headers.get("x-stainless-read-timeout", ""))
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None
