"""The results of a question: the text while it is written, then the complete Answer."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen25vl.errors import UsageError, named_out_of_memory
from qwen25vl.grounding import Box, Point, draw, read_boxes, read_points
from qwen25vl.grounding.boxes import PlaceKind, scale_place
from qwen25vl.inputs import MediaItem, brief_media
from qwen25vl.progress import Progress

if TYPE_CHECKING:
    from PIL import Image

    from qwen25vl.engine.outbox import Chunk
    from qwen25vl.engine.stopping import FinishReason
    from qwen25vl.processing.tokenizer import Tokenizer

MAX_SHOWN = 200  # letters of an answer in its repr


@dataclass(frozen=True)
class Usage:
    """Tokens read and written; the prompt's tokens include the visual tokens. cached_tokens: those
    of the prompt that a kept cache had, so that they were not computed again."""

    prompt_tokens: int
    visual_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Timings:
    """Seconds: getting pictures and text ready, encoding the pictures, reading the prompt, writing
    the answer."""

    preprocess: float
    vision: float
    prefill: float
    decode: float
    tokens_per_second: float


@dataclass(frozen=True)
class Answer:
    """An answer; `str(answer)` is its text.

    finish_reason: "stop", "length", "repetition", "time", or None if the stream was not read to its
    end. media: every picture and video of the prompt with its original size and its model size.
    marked_text: the text with the model's special tokens, some of which mark boxes. schema: what
    the answer was to follow.
    """

    text: str
    finish_reason: FinishReason | None
    usage: Usage
    timings: Timings
    media: tuple[MediaItem, ...]
    marked_text: str = field(repr=False)
    sources: tuple[Any, ...] = field(repr=False)
    schema: Any = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= MAX_SHOWN else self.text[:MAX_SHOWN] + "…"
        tokens = f"{self.usage.prompt_tokens} + {self.usage.completion_tokens} tokens"
        return (
            f"Answer({text!r}, {self.finish_reason}, {tokens}, media=({brief_media(self.media)}))"
        )

    @property
    def parsed(self) -> Any:
        """The value that the text is under the question's schema: an object of a class of pydantic,
        else what JSON says; the text itself where the schema is no JSON. Raises UsageError where
        there was no schema, or where the answer was cut off."""
        from qwen25vl.structured.parsing import parse

        return parse(self.text, self.schema, self.finish_reason)

    @property
    def boxes(self) -> list[Box]:
        """Boxes in the answer, in pixels of the prompt's last picture as it is shown (after its
        EXIF rotation)."""
        return self.find_boxes()

    @property
    def points(self) -> list[Point]:
        """Points in the answer, as `boxes`."""
        return self.find_points()

    def find_boxes(self, picture: int | None = None) -> list[Box]:
        """Boxes, attributed to `media[picture]`. The model does not write which picture it means;
        by default it is the last one, or the last video if there are no pictures."""
        return read_boxes(self.marked_text, **self.sizes(picture)) if self.media else []

    def find_points(self, picture: int | None = None) -> list[Point]:
        """Points, as `find_boxes`."""
        return read_points(self.marked_text, **self.sizes(picture)) if self.media else []

    def in_points(self, place: PlaceKind) -> PlaceKind:
        """A box or point of this answer on a page of a PDF document, in points (1/72 inch) from the
        page's upper left corner, as the page is shown. Raises UsageError where its picture is no
        page."""
        item = self.media[self.meant(place.picture)]
        if item.page_size is None:
            raise UsageError(f"{item.name} is no page of a PDF document; it has no size in points")
        return scale_place(place, item.original_size, item.page_size)

    def sizes(self, picture: int | None) -> dict[str, Any]:
        picture = self.meant(picture)
        item = self.media[picture]
        return {
            "original_size": item.original_size,
            "model_size": item.model_size,
            "picture": picture,
        }

    def draw(
        self, picture: Any = None, *, index: int | None = None, font: str | Path | None = None
    ) -> Image.Image:
        """The original picture with the answer's boxes and points on it.

        index: which of `media` to draw, as in `find_boxes`; picture: any source of it, by default
        the one given with the question (for a video, give the frame). A picture larger than
        `load`'s max_decoded_pixels is decoded at full size here, unless it was given as an open
        picture. A page of a document is rendered as the model saw it. Raises UsageError for a
        picture of another size.
        """
        from PIL import Image

        from qwen25vl.processing.media import load_picture, original_size
        from qwen25vl.processing.pdf import PdfPage
        from qwen25vl.processing.picture_file import MAX_DECODED_PIXELS

        index = self.meant(index)
        item = self.media[index]
        if picture is None and item.kind == "video":
            raise UsageError(f"{item.name} is a video; give draw() the frame to draw on")
        height, width = item.original_size
        limit = max(MAX_DECODED_PIXELS, height * width)
        source = self.sources[index] if picture is None else picture
        if isinstance(source, PdfPage):
            canvas = Image.fromarray(source.render(height, width))
        else:
            canvas = load_picture(source, max_decoded_pixels=limit)
        if original_size(canvas) != (height, width):
            raise UsageError(
                f"the picture is {canvas.width}×{canvas.height} pixels, but the one in the "
                "question "
                f"was {width}×{height}"
            )
        drawn: dict[str, Any] = self.sizes(index) | {"original_size": (canvas.height, canvas.width)}
        boxes = read_boxes(self.marked_text, **drawn)
        points = read_points(self.marked_text, **drawn)
        return draw(canvas, boxes, points, font=font)

    def save_pdf(self, path: str | Path, document: Any = None, *, index: int | None = None) -> None:
        """Write the PDF document of the question with the answer's boxes and points on their page,
        as annotations with their labels. document: another one to write on, a path or bytes, for
        example `path`, to which an answer about another page was saved. index: as in `draw`. Raises
        UsageError where the question had no page of a document, MediaError for a damaged one."""
        from qwen25vl.grounding.pdf_drawing import annotate_page
        from qwen25vl.processing.pdf import PdfPage, open_document
        from qwen25vl.processing.sources import load_bytes

        index = self.meant(index)
        item, source = self.media[index], self.sources[index]
        if not isinstance(source, PdfPage):
            raise UsageError(f"{item.name} is no page of a PDF document")
        boxes = [self.in_points(box) for box in self.find_boxes(index)]
        points = [self.in_points(point) for point in self.find_points(index)]
        data = source.data if document is None else load_bytes(document)
        with open_document(data, item.name) as opened:
            annotated = annotate_page(opened, source.number, boxes, points)
        Path(path).write_bytes(annotated)

    def meant(self, index: int | None) -> int:
        if not self.media:
            raise UsageError("the question had no picture to draw on")
        if index is None:
            return max(range(len(self.media)), key=lambda i: (self.media[i].kind == "image", i))
        if not 0 <= index < len(self.media):
            raise UsageError(
                f"picture {index} does not exist; the prompt has {len(self.media)}, counted from 0"
            )
        return index


class Stopwatch:
    """When each stage of a request was last seen; it stands between the model's reports and the
    caller's."""

    def __init__(self, progress: Progress | None = None) -> None:
        self.progress = progress
        self.last = time.perf_counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def resume(self) -> None:
        """Do not count the time since the last lap: it was the caller's own."""
        self.last = time.perf_counter()

    def lap(self, stage: str) -> None:
        """Count the time since the last lap to this stage."""
        now = time.perf_counter()
        self.seconds[stage] += now - self.last
        self.last = now

    def report(self, stage: str, done: int, total: int) -> None:
        self.lap("first token" if (stage, done) == ("decode", 1) else stage)
        if self.progress:
            self.progress(stage, done, total)

    def timings(self, num_tokens: int) -> Timings:
        preprocess, decode = self.seconds["preprocess"], self.seconds["decode"]
        vision = self.seconds["images"] + self.seconds["videos"]
        prefill = self.seconds["prefill"] + self.seconds["first token"]
        return Timings(
            preprocess, vision, prefill, decode, (num_tokens - 1) / decode if decode else 0.0
        )


@dataclass
class AnswerStream:
    """The chunks of one answer as they are written; `answer` gives the answer so far at any time.

    A copy or an unpickled stream holds what had been written and is closed: it writes no more.
    """

    chunks: Iterator[Chunk]
    tokenizer: Tokenizer
    watch: Stopwatch
    num_prompt_tokens: int
    media: tuple[MediaItem, ...]
    sources: tuple[Any, ...]
    schema: Any = None
    text: str = ""
    tokens: list[int] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    num_cached: int = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "chunks": iter(())}

    def __repr__(self) -> str:
        state = self.finish_reason or "not at its end"
        return f"AnswerStream({len(self.tokens)} tokens, {state}, text={self.text[:MAX_SHOWN]!r})"

    def __iter__(self) -> AnswerStream:
        return self

    @named_out_of_memory()
    def __next__(self) -> Chunk:
        self.watch.resume()
        chunk = next(self.chunks)
        self.text += chunk.text
        self.tokens.append(chunk.token)
        self.finish_reason = chunk.finish_reason
        self.num_cached = getattr(self.chunks, "num_reused", 0)
        return chunk

    def close(self) -> None:
        """Stop writing, and free the memory that it takes."""
        self.chunks = iter(())

    @property
    def spoken_text(self) -> str:
        """What has been written so far as it goes back to the model: with its control tokens."""
        return self.tokenizer.spoken_text(self.tokens, self.text)

    @property
    def answer(self) -> Answer:
        """What has been written so far, and what it took."""
        visual = sum(item.num_tokens for item in self.media)
        return Answer(
            text=self.text,
            finish_reason=self.finish_reason,
            usage=Usage(self.num_prompt_tokens, visual, len(self.tokens), self.num_cached),
            timings=self.watch.timings(len(self.tokens)),
            media=self.media,
            marked_text=self.tokenizer.decode(self.tokens),
            sources=self.sources,
            schema=self.schema,
        )
