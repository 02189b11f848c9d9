"""What a server is told at its start: where it listens, what it serves, and its limits.

A request may ask for less than a limit, never for more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

MIB = 2**20


@dataclass(frozen=True)
class MediaLimits:
    """max_images, max_videos: of a request. allowed_domains: hosts that media may be fetched from;
    none by default. allowed_path: the folder whose files `file://` addresses may name. max_pixels:
    of a picture as the model sees it, None for the checkpoint's. max_decoded_pixels: of a picture
    as it is sent. num_workers: processes that decode; worker_bytes: the memory that each may take
    beside what it starts with; worker_seconds: for one picture, for one clip ten times as much;
    keeps_documents: whether it keeps the last document."""

    max_images: int = 16
    max_videos: int = 2
    max_pages: int = 32
    max_pixels: int | None = None
    max_decoded_pixels: int = 50_000_000
    max_image_bytes: int = 20 * MIB
    max_video_bytes: int = 64 * MIB
    max_pdf_bytes: int = 64 * MIB
    max_frames: int = 768
    max_source_frames: int = 36_000
    allowed_domains: tuple[str, ...] = ()
    allowed_path: Path | None = None
    fetch_seconds: float = 10.0
    num_workers: int = 2
    worker_bytes: int = 1024 * MIB
    worker_seconds: float = 10.0
    keeps_documents: bool = False


@dataclass(frozen=True)
class ServerSettings:
    """api_keys: any of them opens all routes; without one, none is asked for. model_names: what
    the model is called by; any_model_name: whether it also answers to other names. max_model_len:
    tokens of a prompt with its answer. memory_bytes: for all caches of running requests.
    max_num_seqs: answers written at once. max_queued_*: of the requests that wait, tokens by
    default four times the context; a patch takes 2.4 kB. max_body_bytes: of a request.
    max_connections: open at once. keep_alive_seconds: between two lines of a stream.
    max_stored_*, stored_seconds: of responses that are kept in memory, to be gone on from by their
    id; seconds since one was last used. keep_alive_seconds: between two lines of a stream.
    shutdown_seconds: for running requests to finish after SIGTERM."""

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = ()
    model_names: tuple[str, ...] = ("qwen2.5-vl",)
    any_model_name: bool = False
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    max_model_len: int | None = None
    default_max_tokens: int = 4096
    memory_bytes: int | None = None
    max_num_seqs: int = 32
    max_queued_requests: int = 64
    max_queued_tokens: int | None = None
    max_queued_patches: int = 400_000
    max_body_bytes: int = 128 * MIB
    max_connections: int = 256
    max_answers: int = 16
    max_stored_responses: int = 1000
    max_stored_bytes: int = 256 * MIB
    stored_seconds: float = 24 * 3600.0
    keep_alive_seconds: float = 10.0
    shutdown_seconds: float = 30.0
    has_page: bool = True
    media: MediaLimits = field(default_factory=MediaLimits)
