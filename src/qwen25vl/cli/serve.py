"""`qwen25vl serve`: the HTTP server."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
from pathlib import Path
from typing import Any

from qwen25vl.cli.opening import open_model, say
from qwen25vl.errors import DependencyError, UsageError

KEY_VARIABLE = "QWEN25VL_API_KEY"
UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
UNITS |= {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
MISSING = 'the server needs more packages: pip install "qwen25vl[serve]" ({})'


def serve(arguments: argparse.Namespace) -> int:
    try:
        from qwen25vl.serving.server import Listening, Server, check_exposure
    except ImportError as error:
        raise DependencyError(MISSING.format(error.name)) from error
    listening = Listening(
        arguments.uds, arguments.ssl_keyfile, arguments.ssl_certfile, arguments.root_path
    )
    settings = read_settings(arguments)
    check_exposure(settings, listening, arguments.no_api_key)
    logging.basicConfig(
        level=arguments.log_level.upper(), format="%(asctime)s %(levelname)s %(message)s"
    )
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = Server(open_model(arguments, **read_caches(arguments)), settings, listening, say)
    server.run()
    return 0 if server.started else 1


def read_settings(arguments: argparse.Namespace) -> Any:
    """What was typed, as ServerSettings. Raises UsageError for what is out of range."""
    from qwen25vl.serving.settings import MediaLimits, ServerSettings

    limits = read_limits(arguments.limit_mm_per_prompt)
    media: dict[str, Any] = {
        "max_images": limits.get("image"),
        "max_videos": limits.get("video"),
        "max_pixels": arguments.max_pixels,
        "max_decoded_pixels": arguments.max_decoded_pixels,
        "allowed_domains": split_names(arguments.allowed_media_domains),
        "allowed_path": read_folder(arguments.allowed_local_media_path),
        "num_workers": arguments.media_workers,
    }
    values: dict[str, Any] = {
        "host": arguments.host,
        "port": arguments.port,
        "api_keys": read_keys(arguments),
        "model_names": tuple(arguments.served_model_name) or (default_name(arguments.model),),
        "any_model_name": arguments.any_model_name,
        "allowed_hosts": split_names(arguments.allowed_hosts),
        "allowed_origins": split_names(arguments.allowed_origins),
        "max_model_len": arguments.max_model_len,
        "default_max_tokens": arguments.default_max_tokens,
        "memory_bytes": read_bytes(arguments.memory),
        "max_num_seqs": arguments.max_num_seqs,
        "max_queued_requests": arguments.max_num_queued_reqs,
        "max_queued_tokens": arguments.max_num_queued_tokens,
        "max_stored_responses": arguments.max_stored_responses,
        "max_body_bytes": read_bytes(arguments.max_body),
        "keep_alive_seconds": arguments.sse_keep_alive_interval,
        "shutdown_seconds": arguments.shutdown_timeout,
        "has_page": not arguments.no_page,
        "media": MediaLimits(**{name: value for name, value in media.items() if value is not None}),
    }
    return ServerSettings(**{name: value for name, value in values.items() if value is not None})


def read_keys(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Those of --api-key, of --api-key-file (one a line) and of the environment."""
    keys = [*arguments.api_key]
    if arguments.api_key_file:
        try:
            keys += Path(arguments.api_key_file).read_text("utf-8").split()
        except OSError as error:
            raise UsageError(f"--api-key-file cannot be read: {error.strerror}") from None
        if not keys:
            raise UsageError("--api-key-file holds no key")
    if not keys and os.environ.get(KEY_VARIABLE):
        keys.append(os.environ[KEY_VARIABLE])
    if any(not key.strip() for key in keys):
        raise UsageError("an API key is empty")
    return tuple(keys)


def read_limits(text: str | None) -> dict[str, int]:
    """image=8,video=1, or the same as JSON."""
    if not text:
        return {}
    try:
        pairs = json.loads(text) if text.lstrip().startswith("{") else dict(
            part.split("=", 1) for part in text.split(",")
        )  # fmt: skip
        limits = {str(name).strip(): int(value) for name, value in pairs.items()}
    except (ValueError, TypeError, AttributeError):
        limits = {"?": 0}
    if limits.keys() - {"image", "video"} or any(value < 0 for value in limits.values()):
        raise UsageError(f"--limit-mm-per-prompt is {text!r}; expected image=8,video=1")
    return limits


def read_caches(arguments: argparse.Namespace) -> dict[str, int]:
    """The sizes of the two caches, where they were typed."""
    typed = {
        "prefix_cache_bytes": arguments.prefix_cache,
        "visual_cache_bytes": arguments.visual_cache,
    }
    return {
        name: 0 if text == "0" else read_bytes(text) or 0
        for name, text in typed.items()
        if text is not None
    }


def read_bytes(text: str | None) -> int | None:
    """8GB, 512MiB or a plain number of bytes."""
    if text is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?)b?", text.strip().lower())
    if found is None or found[2] not in UNITS or not float(found[1]):
        raise UsageError(f"{text!r} is no amount of memory; expected one such as 8GB or 512MiB")
    return int(float(found[1]) * UNITS[found[2]])


def read_folder(text: str | None) -> Path | None:
    if text is None:
        return None
    folder = Path(text).resolve()
    if not folder.is_dir():
        raise UsageError(f"--allowed-local-media-path {text} is no folder")
    return folder


def split_names(typed: list[str]) -> tuple[str, ...]:
    return tuple(name for text in typed for name in text.replace(",", " ").split())


def default_name(model: str | None) -> str:
    """The last part of a folder or file, a hub name as it is."""
    if model is None:
        return "qwen25vl-demo"
    path = Path(model)
    return path.resolve().name if path.exists() else model
