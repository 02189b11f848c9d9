"""How errors are said on each API's routes: as OpenAI does, but to Anthropic's and Ollama's clients
as those do.

    {"type": "error", "error": {"type": …, "message": …}, "request_id": …}    Anthropic's
    {"error": …}                                                              Ollama's

Each client chooses its exception class by the status, so that the statuses differ as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen25vl.serving.errors import ApiError

ANTHROPIC, OLLAMA = "/v1/messages", "/api/"
ANTHROPIC_STATUS = {503: 529}
ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
OLLAMA_STATUS = {429: 503}


def route_path(scope: Mapping[str, Any]) -> str:
    """The path of a connection, without the one under which a proxy shows the server."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def is_anthropic(path: str) -> bool:
    return path == ANTHROPIC or path.startswith(f"{ANTHROPIC}/")


def say_error(scope: Mapping[str, Any], error: ApiError) -> tuple[int, dict[str, Any]]:
    """The status and body of an error on this connection."""
    path = route_path(scope)
    if is_anthropic(path):
        status = ANTHROPIC_STATUS.get(error.status, error.status)
        return status, anthropic_error(error, scope)
    if path.startswith(OLLAMA):
        return OLLAMA_STATUS.get(error.status, error.status), ollama_error(error)
    return error.status, error.body()


def anthropic_error(error: ApiError, scope: Mapping[str, Any]) -> dict[str, Any]:
    status = ANTHROPIC_STATUS.get(error.status, error.status)
    other = "api_error" if status >= 500 else "invalid_request_error"
    kind = ANTHROPIC_TYPES.get(status, other)
    said = {"type": kind, "message": error.named_message}
    return {"type": "error", "error": said, "request_id": scope.get("request_id")}


def ollama_error(error: ApiError) -> dict[str, Any]:
    return {"error": error.named_message}
