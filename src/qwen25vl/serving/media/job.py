"""What a media process is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from qwen25vl.processing.prepare import Preparation
from qwen25vl.serving.media.medium import Medium

Task = Literal["prepare", "measure", "render"]
GRACE_SECONDS = 1.0  # between the end of a process's own time and the moment it is killed


@dataclass(frozen=True)
class MediaJob:
    """prepare: to patches, under `how` and the medium's own `options`; measure: the sizes of a
    document's `pages`; render: those as PNG, at most `max_pixels` each.

    seconds: of the processor, and of the clock. document: "kept" for the next jobs too, or the one
    that was kept before, of which nothing is sent.
    """

    task: Task
    form: str
    noun: Literal["image", "video", "file"]
    lengths: tuple[int, ...]
    seconds: float
    options: Mapping[str, Any] = field(default_factory=dict)
    how: Preparation | None = None
    page: int | None = None
    pages: Any = None
    max_pages: int = 1
    max_pixels: int = 1 << 20
    document: Literal["sent", "kept", "as before"] = "sent"


def job_of(task: Task, medium: Medium, seconds: float, **further: Any) -> MediaJob:
    lengths = tuple(map(len, medium.contents))
    return MediaJob(task, medium.form, medium.noun, lengths, seconds, page=medium.page, **further)
