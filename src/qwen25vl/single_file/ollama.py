"""Names such as "qwen2.5vl:7b": models in Ollama's local store.

The store has a manifest for each model, a JSON file that lists blobs by their digest; the blob of
the model is a GGUF file without an extension. Nothing is downloaded.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from qwen25vl.config_values import read_json
from qwen25vl.errors import CheckpointError

MODEL, PROJECTOR = (
    "application/vnd.ollama.image.model",
    "application/vnd.ollama.image.projector",
)
# where the installed service keeps its models, apart from the user's own
SYSTEM_STORES = (Path("/usr/share/ollama/.ollama/models"), Path("/var/lib/ollama/.ollama/models"))
PART = r"\w[\w.-]*"
NAME = re.compile(rf"(?:({PART})/)?(?:({PART})/)?({PART})(?::({PART}))?")
REGISTRY, LIBRARY, LATEST = "registry.ollama.ai", "library", "latest"


def stores() -> list[Path]:
    own = os.environ.get("OLLAMA_MODELS")
    return [Path(own) if own else Path.home() / ".ollama" / "models", *SYSTEM_STORES]


def find_ollama(name: str) -> tuple[Path, Path | None] | None:
    """The files of a model's language part and of its vision encoder, where that is one of its own.

    None where no store has the model. Raises CheckpointError for a damaged or incomplete one.
    """
    match = NAME.fullmatch(name)
    if match is None:
        return None
    host, owner, model, tag = match.groups()
    if host is not None and owner is None:
        host, owner = None, host
    parts = (host or REGISTRY, owner or LIBRARY, model, tag or LATEST)
    for store in stores():
        manifest = store.joinpath("manifests", *parts)
        if manifest.is_file():
            return read_manifest(manifest, store, name)
    return None


def read_manifest(manifest: Path, store: Path, name: str) -> tuple[Path, Path | None]:
    layers = read_json(manifest).get("layers")
    found: dict[str, Path] = {}
    listed = layers if isinstance(layers, list) else []
    for layer in [layer for layer in listed if isinstance(layer, dict)]:
        kind, digest = (str(layer.get(key)) for key in ("mediaType", "digest"))
        if kind in (MODEL, PROJECTOR) and re.fullmatch(r"sha256:[0-9a-f]{64}", digest):
            found.setdefault(kind, store / "blobs" / digest.replace(":", "-"))
        if kind.endswith(".adapter"):
            raise CheckpointError(
                f"{name} has an adapter in Ollama's own form, which is not read; merge it first"
            )
    if MODEL not in found:
        raise CheckpointError(f"{manifest} names no model; run `ollama pull {name}`")
    if absent := [path for path in found.values() if not path.is_file()]:
        raise CheckpointError(f"{absent[0]} of {name} is missing; run `ollama pull {name}`")
    return found[MODEL], found.get(PROJECTOR)


def looks_like_ollama(name: str) -> bool:
    """Whether a name can only be meant for Ollama: a tag, and no owner."""
    match = NAME.fullmatch(name)
    return match is not None and match[4] is not None and match[1] is None
