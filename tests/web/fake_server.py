"""A server that says what a test tells it to say, with the page of the real one.

It speaks the wire format of `POST /v1/chat/completions` as the page needs it and knows no model.
Each request takes the next of `replies`; what was asked stands in `requests`.
"""

import asyncio
import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from qwen25vl.serving.page import SECURITY_HEADERS, page_paths, page_routes

Chunk = dict[str, Any]
MODEL = {
    "id": "demo", "object": "model", "created": 0, "owned_by": "qwen25vl", "max_model_len": 4096,
    "min_pixels": 12544, "max_pixels": 451584,
}  # fmt: skip


@dataclass
class Reply:
    """pieces: of the text, sent one after the other, `pause` seconds apart. last: `media`, `boxes`
    and `points` beside the reason of the end. is_cut: the connection is closed before the end.
    hold: waits for this event before the last piece."""

    pieces: list[str]
    progress: list[Chunk] = field(default_factory=list)
    last: Chunk = field(default_factory=dict)
    finish: str = "stop"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    error: str | None = None
    is_cut: bool = False
    pause: float = 0.0
    hold: threading.Event | None = None


def usage(num_tokens: int) -> Chunk:
    details = {"cached_tokens": 30, "image_tokens": 42, "video_tokens": 0, "text_tokens": 25}
    return {
        "prompt_tokens": 67, "completion_tokens": num_tokens, "total_tokens": 67 + num_tokens,
        "prompt_tokens_details": details,
    }  # fmt: skip


TIMINGS = {
    "preprocess": 0.004, "vision": 0.031, "prefill": 0.052, "decode": 0.31,
    "tokens_per_second": 81.4,
}  # fmt: skip


class FakeServer:
    def __init__(self, key: str | None = None) -> None:
        self.key, self.replies, self.requests = key, list[Reply](), list[Chunk]()
        self.violations: list[str] = []
        self.num_closed = 0  # streams that the browser closed
        self.pdf: Chunk = {"num_pages": 0, "pages": []}
        self.url = ""

    def start(self) -> None:
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
        config = uvicorn.Config(self.application(), log_level="error", lifespan="off")
        self.uvicorn = uvicorn.Server(config)
        run = lambda: self.uvicorn.run([listener])  # noqa: E731
        self.thread = threading.Thread(target=run, daemon=True)
        self.thread.start()
        deadline = time.monotonic() + 10
        while not self.uvicorn.started:
            if time.monotonic() > deadline:
                raise TimeoutError("the fake server did not start within 10 s")
            time.sleep(0.01)

    def stop(self) -> None:
        self.uvicorn.should_exit = self.uvicorn.force_exit = True
        self.thread.join(10)

    def reset(self) -> None:
        self.replies.clear()
        self.requests.clear()
        self.num_closed = 0
        self.key = None

    def application(self) -> Callable[..., Awaitable[None]]:
        inner = Starlette(
            routes=[
                *page_routes(),
                Route("/v1/models", self.models),
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/page/pdf", self.pages, methods=["POST"]),
            ]
        )
        headers = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]
        open_paths = page_paths()

        async def outermost(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            async def sending(message: MutableMapping[str, Any]) -> None:
                if message["type"] == "http.response.start":
                    message["headers"] = [*message["headers"], *headers]
                await send(message)

            given = dict(scope["headers"]).get(b"authorization", b"").decode()
            is_open = self.key is None or scope["path"] in open_paths
            if not is_open and given != f"Bearer {self.key}":
                await error(401, "This server needs an API key.")(scope, receive, sending)
                return
            await inner(scope, receive, sending)

        return outermost

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [MODEL]})

    async def pages(self, request: Request) -> Response:
        if not (await request.body()).startswith(b"%PDF-"):
            return error(400, "This is not a PDF.")
        wanted = request.query_params.get("page")
        if wanted is None:
            return JSONResponse(self.pdf)
        return JSONResponse({**self.pdf, "pages": [self.pdf["pages"][int(wanted) - 1]]})

    async def chat(self, request: Request) -> Response:
        self.requests.append(await request.json())
        reply = self.replies.pop(0) if self.replies else Reply(["Nothing was planned."])
        if reply.status != 200:
            return error(reply.status, reply.error or "No.", reply.headers)
        headers = {"cache-control": "no-cache"}
        return StreamingResponse(
            self.stream(reply), headers=headers, media_type="text/event-stream"
        )

    async def stream(self, reply: Reply) -> AsyncIterator[str]:
        try:
            yield event(choices=[choice({"role": "assistant", "content": ""})])
            for progress in reply.progress:
                yield event(choices=[], progress=progress)
                await asyncio.sleep(reply.pause)
            for index, piece in enumerate(reply.pieces):
                is_last = index == len(reply.pieces) - 1
                while is_last and reply.hold and not reply.hold.is_set():
                    yield ": keep-alive\n\n"
                    await asyncio.sleep(0.02)
                yield event(choices=[choice({"content": piece})])
                await asyncio.sleep(reply.pause)
            if reply.is_cut:
                return
            if reply.error:
                yield f"data: {json.dumps({'error': {'message': reply.error, 'code': None}})}\n\n"
                return
            yield event(choices=[{**choice({}), "finish_reason": reply.finish}], **reply.last)
            yield event(choices=[], usage=usage(len(reply.pieces)), timings=TIMINGS)
            yield "data: [DONE]\n\n"
        except (asyncio.CancelledError, ClientDisconnect):
            self.num_closed += 1
            raise


def choice(delta: Chunk) -> Chunk:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}


def event(**chunk: Any) -> str:
    whole = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "demo"}
    return f"data: {json.dumps({**whole, **chunk})}\n\n"


def error(status: int, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"error": {"message": message, "type": "server_error", "param": None, "code": None}}
    return JSONResponse(body, status, headers)
