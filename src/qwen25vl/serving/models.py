"""GET /v1/models: the model under its names, and its adapters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.sse import to_json

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service


async def list_models(service: Service, _: Request) -> Response:
    names = service.settings.model_names
    data = [describe(service, name) for name in names]
    data += [describe(service, name, names[0]) for name in service.vlm.model.adapters.loaded]
    return as_json({"object": "list", "data": data})


async def show_model(service: Service, request: Request) -> Response:
    name = request.path_params["name"]
    if name in service.settings.model_names:
        return as_json(describe(service, name))
    if name in service.vlm.model.adapters.loaded:
        return as_json(describe(service, name, service.settings.model_names[0]))
    message = f"The model `{name[:100]}` does not exist."
    raise ApiError(404, message, param="model", code="model_not_found")


def describe(service: Service, name: str, parent: str | None = None) -> dict[str, Any]:
    """parent: the model that an adapter changes. min_pixels, max_pixels: of a picture at model
    size, from which the page tells its visual tokens beforehand."""
    pictures = service.media.how.pictures
    return {
        "id": name,
        "object": "model",
        "created": service.created,
        "owned_by": "qwen25vl",
        "root": name,
        "parent": parent,
        "max_model_len": service.max_model_len,
        "min_pixels": int(pictures.min_pixels),
        "max_pixels": int(pictures.max_pixels),
        "capabilities": ["completion", "multimodal", "vision"],
    }


def as_json(value: Any, status: int = 200) -> Response:
    return Response(to_json(value), status, media_type="application/json")
