"""A media process: reads one job after the other, within limits on its memory and its time.

It runs in a copy of the nursery's process. What crashes or hangs here ends this process and the one
request whose picture did it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import resource
import socket
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qwen25vl.errors import MediaSizeError
from qwen25vl.processing.content import identify
from qwen25vl.processing.messages import Part
from qwen25vl.processing.pdf import keep_open, read_pages
from qwen25vl.processing.picture_file import PLUGINS, open_picture, refusing
from qwen25vl.processing.prepare import Prepared, prepare_part
from qwen25vl.serving.media.faults import describe
from qwen25vl.serving.media.job import MediaJob
from qwen25vl.serving.media.parcel import LENGTHS, pack, read_bytes, receive, send

MAX_REDUCED = 2.5  # a JPEG of up to so many times the largest picture is decoded smaller
Reply = tuple[dict[str, Any], list[Any]]


def serve(connection: socket.socket, worker_bytes: int) -> None:
    """Until the server closes the connection."""
    torch.set_num_threads(1)
    limit_memory(worker_bytes)
    kept: list[bytes] = []
    while True:
        message, descriptors = receive(connection, LENGTHS.size)
        if not message:
            return
        header_bytes, _ = LENGTHS.unpack(message)
        (descriptor,) = descriptors
        job: MediaJob = pickle.loads(read_bytes(descriptor, header_bytes, 0))
        header, contents = perform(job, read_contents(job, descriptor, header_bytes, kept))
        os.close(descriptor)
        reply, message = pack(json.dumps(header).encode(), contents)
        del contents
        send(connection, message, reply)
        os.close(reply)


def limit_memory(worker_bytes: int) -> None:
    """So many bytes of addresses beside those in use now; no core files."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    statistics = Path("/proc/self/statm")
    if statistics.exists():
        used = int(statistics.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + worker_bytes, used + worker_bytes))


def limit_time(seconds: float) -> None:
    """So many seconds of the processor from now on."""
    end = int(time.process_time() + seconds) + 2
    resource.setrlimit(resource.RLIMIT_CPU, (end, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def read_contents(job: MediaJob, descriptor: int, offset: int, kept: list[bytes]) -> list[bytes]:
    """What came with a job. kept: the last document that was to be kept."""
    if job.document == "as before":
        return kept
    contents = []
    for length in job.lengths:
        contents.append(read_bytes(descriptor, length, offset))
        offset += length
    if job.document == "kept":
        kept[:] = contents
        keep_open(contents[0])
    return contents


def perform(job: MediaJob, contents: list[bytes]) -> Reply:
    limit_time(job.seconds)
    source: Any = contents if job.form == "frames" else contents[0]
    tasks = {"prepare": prepare, "measure": measure, "render": render}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return tasks[job.task](job, source)
    except Exception as error:  # whatever a decoder raises, it is this request's own
        fault, text = describe(error, job.noun, source)
        return {"fault": fault, "text": text}, []


def prepare(job: MediaJob, source: Any) -> Reply:
    if job.how is None:
        raise ValueError("a job without settings")
    if job.form == "page":
        (source,) = read_pages(source, "the document", job.page)
    else:
        for content in source if isinstance(source, list) else [source]:
            check_header(content, job.how.max_decoded_pixels)
    kind: Any = "image" if job.form in ("picture", "page") else "video"
    prepared = prepare_part(Part(kind, "", source, job.options), job.how)
    return describe_prepared(prepared)


def check_header(data: bytes, max_pixels: int) -> None:
    """Refuse a picture of too many pixels before any is decoded. A JPEG may have a few times as
    many: it is decoded smaller."""
    content = identify(data)
    if content is None or content.picture not in PLUGINS:
        return
    with refusing("the picture"):
        width, height = open_picture(data, content.picture, "the picture").size
    limit = max_pixels * (MAX_REDUCED if content.picture == "JPEG" else 1)
    if width * height > limit:
        raise MediaSizeError(
            f"the picture has {width}×{height} pixels; at most {max_pixels} are decoded"
        )


def describe_prepared(prepared: Prepared) -> Reply:
    """The patches as bytes, and what is known about them as plain numbers."""
    patches, item = prepared.patches, prepared.item
    if not isinstance(patches, torch.Tensor):
        raise TypeError("deferred patches cannot leave their process")
    header = {
        "shape": list(patches.shape),
        "grid": list(prepared.grid),
        "original_size": list(item.original_size),
        "model_size": list(item.model_size),
        "num_tokens": item.num_tokens,
        "num_frames": item.num_frames,
        "seconds_per_grid": item.seconds_per_grid,
        "source_fps": item.source_fps,
        "num_source_frames": item.num_source_frames,
        "frame_numbers": list(item.frame_numbers),
        "page": item.page,
        "page_size": None if item.page_size is None else list(item.page_size),
    }
    return header, [patches.contiguous().view(torch.uint8).numpy()]


def measure(job: MediaJob, source: Any) -> Reply:
    """The chosen pages of a document: the number and the size in points of each."""
    pages = read_pages(source, "the document", job.pages, job.max_pages)
    return {"numbers": [page.number for page in pages], "sizes": [page.size for page in pages]}, []


def render(job: MediaJob, source: Any) -> Reply:
    """The chosen pages as PNG, no larger than they are at 144 dots per inch."""
    files = []
    for page in read_pages(source, "the document", job.pages, job.max_pages):
        height, width = page.pixels
        shrink = min(1.0, (job.max_pixels / (height * width)) ** 0.5)
        size = max(1, int(height * shrink)), max(1, int(width * shrink))
        file = io.BytesIO()
        Image.fromarray(page.render(*size)).save(file, "PNG", compress_level=1)
        files.append(file.getvalue())
    return {"lengths": list(map(len, files))}, files
