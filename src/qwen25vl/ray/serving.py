"""The server as a deployment of Ray Serve: replicas on any number of machines.

A conversation is fast where its beginning is kept, in the replica that answered before. Clients
name it in the header `x-session-id`, and each session stays with one replica.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qwen25vl.errors import DependencyError

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def deployment(
    model: str | None = None,
    *,
    load_options: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
    **ray_options: Any,
) -> Any:
    """An application for `ray.serve.run`, which speaks all of `qwen25vl serve`.

    model: what `load` takes; load_options: more of its arguments. settings: of `ServerSettings`.
    ray_options: of `serve.deployment`, such as num_replicas and ray_actor_options.
    """
    try:
        from ray import serve
        from ray.serve.config import RequestRouterConfig
    except ImportError as error:
        raise DependencyError(f'Ray Serve needs pip install "ray[serve]" ({error})') from None
    router: Any = ROUTER
    options = {
        "name": "qwen25vl",
        "max_ongoing_requests": 64,
        "request_router_config": RequestRouterConfig(
            request_router_class=router, request_router_kwargs={"num_fallback_replicas": 0}
        ),
        **ray_options,
    }
    build = builder_of(model, dict(load_options or {}), dict(settings or {}))
    return serve.deployment(**options)(serve.ingress(build)()).bind()


def builder_of(model: str | None, load_options: dict[str, Any], settings: dict[str, Any]) -> Any:
    """What a replica calls when it starts. Ray takes only a function for that."""

    def build() -> Any:
        from qwen25vl.serving.app import build_app
        from qwen25vl.serving.service import Service
        from qwen25vl.serving.settings import ServerSettings
        from qwen25vl.vlm import load

        return build_app(Service.of(load(model, **load_options), ServerSettings(**settings)))

    return build
