"""From settings to a server that listens, and to its end.

The server listens only after a first request has gone through. SIGTERM and Ctrl-C end it in order:
new requests are refused, running ones may finish for a while, and streams that are still open then
end with an error, never with a connection that just closes. A second signal ends it at once.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any

import uvicorn

from qwen25vl.errors import UsageError
from qwen25vl.serving.app import build_app
from qwen25vl.serving.connection import Connection
from qwen25vl.serving.guard import LOOPBACK
from qwen25vl.serving.service import Service

if TYPE_CHECKING:
    import socket

    from qwen25vl.serving.settings import ServerSettings
    from qwen25vl.vlm import VisionLanguageModel

KEEP_ALIVE_SECONDS = 75  # of an idle connection
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Listening:
    """Where and how a server listens, beside its host and port."""

    uds: str | None = None
    ssl_keyfile: str | None = None
    ssl_certfile: str | None = None
    root_path: str = ""


def check_exposure(settings: ServerSettings, listening: Listening, is_allowed: bool) -> None:
    """Raise UsageError for a server that anybody could use, unless that is wanted."""
    is_local = settings.host in LOOPBACK or listening.uds is not None
    if not (is_local or settings.api_keys or is_allowed):
        raise UsageError(
            f"--host {settings.host} would let anybody on the network use this server; give an "
            "--api-key, or --no-api-key if that is meant"
        )


class Server(uvicorn.Server):
    """uvicorn, with an end in order."""

    def __init__(
        self,
        vlm: VisionLanguageModel,
        settings: ServerSettings,
        listening: Listening,
        say: Callable[[str], None],
    ) -> None:
        self.service = Service.of(vlm, settings)
        self.settings, self.listening, self.say = settings, listening, say
        self.ending: asyncio.Task[None] | None = None
        config = uvicorn.Config(
            build_app(self.service),
            host=settings.host,
            port=settings.port,
            uds=listening.uds,
            ssl_keyfile=listening.ssl_keyfile,
            ssl_certfile=listening.ssl_certfile,
            root_path=listening.root_path,
            http=Connection,
            limit_concurrency=settings.max_connections,
            ws="none",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=5,
        )
        super().__init__(config)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets=sockets)
        if self.started:
            self.say(describe(self.service, self.address))

    @property
    def address(self) -> str:
        """Where clients find the server."""
        if self.listening.uds is not None:
            return f"the socket {self.listening.uds}"
        scheme = "https" if self.listening.ssl_certfile else "http"
        port = next(
            (s.getsockname()[1] for server in self.servers for s in server.sockets),
            self.config.port,
        )
        host = self.settings.host
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self.service.is_draining:
            super().handle_exit(sig, frame)
            return
        self.service.is_draining = True
        name = signal.Signals(sig).name
        seconds = self.settings.shutdown_seconds
        self.say(f"{name}: no new requests; running ones may take {seconds:g} s")
        self.loop.call_soon_threadsafe(self.begin_end, sig, frame)

    def begin_end(self, sig: int, frame: FrameType | None) -> None:
        self.ending = asyncio.ensure_future(self.end(sig, frame))

    async def end(self, sig: int, frame: FrameType | None) -> None:
        """Wait for the running requests, then stop what is left of them."""
        until = self.loop.time() + self.settings.shutdown_seconds
        while self.service.num_open and self.loop.time() < until:
            await asyncio.sleep(POLL_SECONDS)
        self.service.runner.interrupt()
        while self.service.num_open and self.loop.time() < until + 2:
            await asyncio.sleep(POLL_SECONDS)
        super().handle_exit(sig, frame)


def describe(service: Service, address: str) -> str:
    """What a server says when it listens."""
    from qwen25vl import memory
    from qwen25vl.model.cache import cache_bytes

    model, settings = service.vlm.model, service.settings
    per_token = cache_bytes(model.config.text_config, 1, model.dtype.itemsize)
    room = settings.memory_bytes or memory.available_bytes(model.device) or 0
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    named: list[Any] = [*settings.model_names, *model.adapters.loaded]
    return (
        f"{', '.join(named)} at {address}/v1 ({memory.gigabytes(weights)} of weights; "
        f"{memory.gigabytes(room)} for requests hold {room // per_token:,} tokens; "
        f"at most {service.max_model_len:,} of one request)"
    )
