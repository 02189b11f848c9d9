"""GET /openapi.json: the routes, the fields of their requests and the shapes of their errors.

The fields are those of the models that read the requests, so that this description cannot differ
from what is done. Replies are described as far as all clients rely on them.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.serving.anthropic.messages_wire import AnthropicRequest, AnthropicTokens
from qwen25vl.serving.dialects import OLLAMA, is_anthropic
from qwen25vl.serving.models import as_json
from qwen25vl.serving.ollama.ollama_models import ShowRequest
from qwen25vl.serving.ollama.ollama_wire import OllamaChat, OllamaGenerate
from qwen25vl.serving.responses.wire import ResponsesRequest
from qwen25vl.serving.tokens import DetokenizeRequest, TokenizeRequest
from qwen25vl.serving.wire import ChatRequest, CompletionRequest

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service

REF = "#/components/schemas/{model}"
BODIES: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/chat/completions/render": ChatRequest,
    "/v1/completions": CompletionRequest,
    "/v1/responses": ResponsesRequest,
    "/v1/responses/input_tokens": ResponsesRequest,
    "/v1/messages": AnthropicRequest,
    "/v1/messages/count_tokens": AnthropicTokens,
    "/api/chat": OllamaChat,
    "/api/generate": OllamaGenerate,
    "/api/show": ShowRequest,
    "/tokenize": TokenizeRequest,
    "/detokenize": DetokenizeRequest,
}
KEYS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": ("id", "object", "created", "model", "choices", "usage"),
    "/v1/completions": ("id", "object", "created", "model", "choices", "usage"),
    "/v1/responses": ("id", "object", "status", "model", "output"),
    "/v1/messages": ("id", "type", "role", "content", "stop_reason", "usage"),
    "/v1/messages/count_tokens": ("input_tokens",),
    "/v1/models": ("object", "data"),
    "/tokenize": ("count", "max_model_len", "tokens"),
    "/detokenize": ("prompt",),
    "/version": ("version",),
    "/load": ("server_load",),
}
TEXT = {"type": "string"}
EVENT = {"type": "object", "required": ["data"], "properties": {"data": TEXT, "event": TEXT}}
TYPED = {
    **TEXT,
    "contentMediaType": "application/json",
    "contentSchema": {"type": "object", "required": ["type"]},
}
TYPED_EVENT = {
    "type": "object",
    "required": ["event", "data"],
    "properties": {"data": TYPED, "event": TEXT},
}
STREAMS: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/chat/completions": ("text/event-stream", EVENT),
    "/v1/completions": ("text/event-stream", EVENT),
    "/v1/responses": ("text/event-stream", TYPED_EVENT),
    "/v1/messages": ("text/event-stream", TYPED_EVENT),
    "/api/chat": ("application/x-ndjson", TEXT),
    "/api/generate": ("application/x-ndjson", TEXT),
}
"""The other form of a reply. The schema of an event stream is that of each event."""
NULLABLE = {"type": ["string", "null"]}
ERRORS: dict[str, Any] = {
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {
            "error": {
                "type": "object",
                "required": ["message", "type", "param", "code"],
                "properties": {"message": TEXT, "type": TEXT, "param": NULLABLE, "code": NULLABLE},
            }
        },
    },
    "AnthropicError": {
        "type": "object",
        "required": ["type", "error"],
        "properties": {
            "type": {"const": "error"},
            "error": {
                "type": "object",
                "required": ["type", "message"],
                "properties": {"type": TEXT, "message": TEXT},
            },
        },
    },
    "OllamaError": {"type": "object", "required": ["error"], "properties": {"error": TEXT}},
}


async def show_openapi(_service: Service, request: Request) -> Response:
    routes = [
        (route.path.replace(":path}", "}"), method)
        for route in request.app.routes
        for method in sorted(route.methods - {"HEAD"})
        if not route.path.startswith("/page/") and route.path != "/"
    ]
    return as_json(describe(tuple(routes)))


@cache
def describe(routes: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The whole description of these (path, method) pairs."""
    from qwen25vl import __version__

    models = [(model, "validation") for model in dict.fromkeys(BODIES.values())]
    _, found = models_json_schema(models, ref_template=REF)  # type: ignore[arg-type]
    paths: dict[str, Any] = {}
    for path, method in routes:
        paths.setdefault(path, {})[method.lower()] = operation(path, method)
    return {
        "openapi": "3.1.0",
        "info": {"title": "qwen25vl", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**found.get("$defs", {}), **ERRORS},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def operation(path: str, method: str) -> dict[str, Any]:
    """One route with one method."""
    whole: dict[str, Any] = {"type": "object", "required": [*KEYS.get(path, ())]}
    media = "text/plain" if path == "/metrics" else "application/json"
    content: dict[str, Any] = {media: {"schema": TEXT if path == "/metrics" else whole}}
    if path in STREAMS:
        kind, schema = STREAMS[path]
        content[kind] = {"schema": schema}
    name = "AnthropicError" if is_anthropic(path) else "Error"
    name = "OllamaError" if path.startswith(OLLAMA) else name
    errors: dict[str, Any] = {"schema": {"$ref": REF.format(model=name)}}
    is_state = path in ("/health", "/ping", "/ready")  # whose bodies say the state in any case
    other = {"schema": whole} if is_state else errors
    made: dict[str, Any] = {
        "operationId": f"{method.lower()} {path}",
        "responses": {
            "200": {"description": "The reply.", "content": content},
            "default": {"description": "An error.", "content": {"application/json": other}},
        },
    }
    if "{name}" in path:
        made["parameters"] = [{"name": "name", "in": "path", "required": True, "schema": TEXT}]
    if path in BODIES and method == "POST":
        schema = {"$ref": REF.format(model=BODIES[path].__name__)}
        body = {"required": True, "content": {"application/json": {"schema": schema}}}
        made["requestBody"] = body
    return made
