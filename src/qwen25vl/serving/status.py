"""How the server is: /health, /ready, /version, /metrics, /load."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.serving.models import as_json

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service


async def show_health(service: Service, _: Request) -> Response:
    """200 as long as the engine works; 503 while the model loads, when a step is stuck,
    and while every request fails in the engine."""
    if not service.is_ready:
        return as_json({"status": "loading"}, 503)
    if not service.runner.is_healthy:
        return as_json({"status": "error", "reason": "the engine does not run"}, 503)
    if service.runner.is_failing:
        return as_json({"status": "error", "reason": "the last requests all failed"}, 503)
    return as_json({"status": "ok"})


async def show_ready(service: Service, _: Request) -> Response:
    """200 while new requests are taken."""
    if service.is_draining:
        return as_json({"status": "shutting down"}, 503)
    if not (service.is_ready and service.runner.is_healthy):
        return as_json({"status": "not ready"}, 503)
    return as_json({"status": "ready"})


async def show_version(_service: Service, _: Request) -> Response:
    from qwen25vl import __version__

    return as_json({"version": __version__})


async def show_load(service: Service, _: Request) -> Response:
    return as_json({"server_load": service.num_open})


async def show_metrics(service: Service, _: Request) -> Response:
    return Response(service.metrics.text(), media_type=CONTENT_TYPE_LATEST)
