"""GET /api/tags, /api/ps and /api/version, POST /api/show

Clients decide by the capabilities that these name whether a picture may be attached.
"""

from __future__ import annotations

from datetime import UTC, datetime
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response

from qwen25vl.model.packed_linear import PackedLinear
from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.models import as_json
from qwen25vl.serving.ollama.ollama_wire import LATEST, find_name
from qwen25vl.serving.reading import read_body
from qwen25vl.serving.wire import Wire

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service

API_VERSION = "0.12.6"  # of Ollama, whose routes these are: clients ask for a least one
CAPABILITIES = ["completion", "vision", "tools"]
FAMILY = "qwen25vl"
SHORT = {"torch.bfloat16": "BF16", "torch.float16": "F16"}
FOREVER = "2318-01-01T00:00:00Z"  # the model is never unloaded


class ShowRequest(Wire):
    """name: what older clients call the model."""

    model: str | None = None
    name: str | None = None
    verbose: bool | None = None


async def list_tags(service: Service, _: Request) -> Response:
    return as_json({"models": [describe(service, name) for name in names(service)]})


async def list_running(service: Service, _: Request) -> Response:
    of_running = {
        "expires_at": FOREVER,
        "size_vram": 0 if service.vlm.model.device.type == "cpu" else num_bytes(service),
        "context_length": service.max_model_len,
    }
    return as_json({"models": [describe(service, name) | of_running for name in names(service)]})


async def show_ollama_version(_service: Service, _: Request) -> Response:
    return as_json({"version": API_VERSION})


async def show_ollama_model(service: Service, request: Request) -> Response:
    body = await read_body(request, ShowRequest)
    wanted = body.model or body.name
    if not wanted:
        raise ApiError(400, "model is required", param="model")
    name = find_name(service, wanted)
    return as_json(
        {
            "modelfile": f"FROM {name}\n",
            "parameters": "",
            "template": service.vlm.processor.chat_template,
            "details": details(service),
            "model_info": model_info(service, name),
            "capabilities": CAPABILITIES,
            "modified_at": modified_at(service),
        }
    )


def names(service: Service) -> list[str]:
    """With a tag, as all names of Ollama's are."""
    known = [*service.settings.model_names, *service.vlm.model.adapters.loaded]
    return [name if ":" in name else name + LATEST for name in known]


def describe(service: Service, name: str) -> dict[str, Any]:
    config = service.vlm.model.config
    return {
        "name": name,
        "model": name,
        "modified_at": modified_at(service),
        "size": num_bytes(service),
        "digest": sha256(f"{name} {config.to_dict()}".encode()).hexdigest(),
        "details": details(service),
    }


def details(service: Service) -> dict[str, Any]:
    model = service.vlm.model
    bits = [layer.bits for layer in packed_layers(service)]
    return {
        "parent_model": "",
        "format": "safetensors",
        "family": FAMILY,
        "families": [FAMILY],
        "parameter_size": shown_size(num_parameters(service)),
        "quantization_level": f"INT{min(bits)}" if bits else SHORT.get(str(model.dtype), "F32"),
    }


def model_info(service: Service, name: str) -> dict[str, Any]:
    """Sizes under the names that GGUF files have for them."""
    text, vision = service.vlm.model.config.text_config, service.vlm.model.config.vision_config
    sizes = {
        "context_length": service.max_model_len,
        "embedding_length": text.hidden_size,
        "block_count": text.num_hidden_layers,
        "feed_forward_length": text.intermediate_size,
        "attention.head_count": text.num_attention_heads,
        "attention.head_count_kv": text.num_key_value_heads,
        "attention.layer_norm_rms_epsilon": text.rms_norm_eps,
        "vision.block_count": vision.depth,
        "vision.embedding_length": vision.hidden_size,
        "vision.attention.head_count": vision.num_heads,
        "vision.patch_size": vision.patch_size,
        "vision.spatial_merge_size": vision.spatial_merge_size,
    }
    return {
        "general.architecture": FAMILY,
        "general.basename": name,
        "general.parameter_count": num_parameters(service),
        **{f"{FAMILY}.{key}": value for key, value in sizes.items()},
    }


def num_bytes(service: Service) -> int:
    return sum(tensor.nbytes for tensor in service.vlm.model.state_dict().values())


def num_parameters(service: Service) -> int:
    plain = sum(parameter.numel() for parameter in service.vlm.model.parameters())
    packed = sum(layer.in_features * layer.out_features for layer in packed_layers(service))
    return plain + packed


def packed_layers(service: Service) -> list[PackedLinear]:
    return [each for each in service.vlm.model.modules() if isinstance(each, PackedLinear)]


def shown_size(number: int) -> str:
    return f"{number / 1e9:.1f}B" if number >= 1e9 else f"{number / 1e6:.1f}M"


def modified_at(service: Service) -> str:
    return datetime.fromtimestamp(service.created, UTC).isoformat().replace("+00:00", "Z")
