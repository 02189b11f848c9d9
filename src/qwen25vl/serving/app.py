"""The routes, behind the guard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from qwen25vl.serving.anthropic.messages_route import count_message_tokens, create_message
from qwen25vl.serving.chat import create_chat
from qwen25vl.serving.completions import create_completion
from qwen25vl.serving.dialects import say_error
from qwen25vl.serving.errors import ApiError, of_error
from qwen25vl.serving.guard import Guard
from qwen25vl.serving.models import list_models, show_model
from qwen25vl.serving.ollama.ollama_models import (
    list_running,
    list_tags,
    show_ollama_model,
    show_ollama_version,
)
from qwen25vl.serving.ollama.ollama_routes import create_ollama_chat, create_ollama_text
from qwen25vl.serving.openapi import show_openapi
from qwen25vl.serving.page import page_routes
from qwen25vl.serving.preview import preview_pdf
from qwen25vl.serving.responses.routes import (
    cancel_response,
    count_input,
    create_response,
    delete_response,
    list_items,
    refuse_compacting,
    show_response,
)
from qwen25vl.serving.sse import ClientGoneError, to_json
from qwen25vl.serving.status import show_health, show_load, show_metrics, show_ready, show_version
from qwen25vl.serving.tokens import detokenize, render_prompt, show_tokenizer, tokenize

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from starlette.types import ASGIApp, Receive, Scope, Send

    from qwen25vl.serving.service import Service

Endpoint = Callable[["Service", Request], Awaitable[Any]]
STATUS: dict[str, Endpoint] = {
    "/health": show_health,
    "/ping": show_health,
    "/ready": show_ready,
    "/version": show_version,
    "/metrics": show_metrics,
    "/load": show_load,
    "/openapi.json": show_openapi,
    "/tokenizer_info": show_tokenizer,
    "/v1/models": list_models,
    "/v1/models/{name:path}": show_model,
    "/api/tags": list_tags,
    "/api/ps": list_running,
    "/api/version": show_ollama_version,
}
LOOKUPS: dict[str, Endpoint] = {"/api/show": show_ollama_model}
WORK: dict[str, Endpoint] = {
    "/v1/chat/completions": create_chat,
    "/v1/completions": create_completion,
    "/v1/messages": create_message,
    "/v1/messages/count_tokens": count_message_tokens,
    "/api/chat": create_ollama_chat,
    "/api/generate": create_ollama_text,
    "/v1/chat/completions/render": render_prompt,
    "/v1/responses": create_response,
    "/v1/responses/input_tokens": count_input,
    "/tokenize": tokenize,
    "/detokenize": detokenize,
}
STORED: dict[tuple[str, str], Endpoint] = {
    ("GET", "/v1/responses/{name}"): show_response,
    ("DELETE", "/v1/responses/{name}"): delete_response,
    ("POST", "/v1/responses/{name}/cancel"): cancel_response,
    ("GET", "/v1/responses/{name}/input_items"): list_items,
    ("POST", "/v1/responses/compact"): refuse_compacting,
}
UNKNOWN = {404: "There is no such route.", 405: "This route does not have this method."}


def build_app(service: Service) -> ASGIApp:
    """The whole server as an ASGI application."""
    routes = [
        Route(path, Answering(service, each), methods=["GET"]) for path, each in STATUS.items()
    ]
    routes += [
        Route(path, Answering(service, each), methods=["POST"]) for path, each in LOOKUPS.items()
    ]
    routes += [
        Route(path, Answering(service, each, counts=True), methods=["POST"])
        for path, each in WORK.items()
    ]
    routes += [
        Route(path, Answering(service, each), methods=[method])
        for (method, path), each in STORED.items()
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    if service.settings.has_page:
        preview = Answering(service, preview_pdf, counts=True)
        routes += [*page_routes(), Route("/page/pdf", preview, methods=["POST"])]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=HANDLERS)
    app.router.redirect_slashes = False
    return Guard(app, service.settings)


def not_found(request: Request, error: Exception) -> Response:
    """404 and 405; the latter says which methods there are."""
    assert isinstance(error, HTTPException)
    message = UNKNOWN.get(error.status_code, "The request was not understood.")
    code = "not_found" if error.status_code == 404 else None
    response = as_response(ApiError(error.status_code, message, code=code), request.scope)
    response.headers.update(error.headers or {})
    return response


def failed(request: Request, error: Exception) -> Response:
    """For what goes wrong outside of every route; the server's own log has it."""
    return as_response(of_error(error), request.scope)


HANDLERS: dict[Any, Any] = {HTTPException: not_found, Exception: failed}


def as_response(error: ApiError, scope: Scope) -> Response:
    """In the shape that this route's clients understand."""
    status, body = say_error(scope, error)
    return Response(to_json(body), status, error.headers(), media_type="application/json")


class Answering:
    """A route: whatever goes wrong becomes an error in the shape of its API. counts: whether its
    requests take a place in the queue."""

    def __init__(self, service: Service, endpoint: Endpoint, *, counts: bool = False) -> None:
        self.service, self.endpoint, self.counts = service, endpoint, counts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.counts:
            try:
                self.service.enter()
            except ApiError as error:
                self.service.report(error)
                await as_response(error, scope)(scope, receive, send)
                return
        try:
            response = await self.respond(Request(scope, receive))
            if response is not None:
                await response(scope, receive, send)
        finally:
            if self.counts:
                self.service.leave()

    async def respond(self, request: Request) -> Any:
        """The reply, None where nobody is there to read it. What the guard raises is its own."""
        try:
            return await self.endpoint(self.service, request)
        except (ClientGoneError, ClientDisconnect):
            return None
        except Exception as error:
            self.service.report(error)
            return as_response(of_error(error), request.scope)
