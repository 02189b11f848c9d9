"""From the texts and media of a call to its result, under the options of the call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from qwen25vl.ecosystem.encodings import read_padding, shape_result
from qwen25vl.ecosystem.image_processor import Qwen2VLImageProcessor
from qwen25vl.ecosystem.media_values import check_value
from qwen25vl.ecosystem.processor_options import SortedOptions
from qwen25vl.ecosystem.tokenizer import Qwen2Tokenizer
from qwen25vl.ecosystem.video_processor import Qwen2VLVideoProcessor, describe
from qwen25vl.errors import UsageError
from qwen25vl.inputs import MediaItem, ModelInputs
from qwen25vl.processing.collate import Prompt, collate
from qwen25vl.processing.image import read_bounds
from qwen25vl.processing.messages import Part
from qwen25vl.processing.prepare import Preparation, prepare_part
from qwen25vl.processing.prompt_videos import Sampling, is_frames, list_metadata
from qwen25vl.processing.tokenizer import Piece
from qwen25vl.processing.video_options import read_option

RATES = ("fps", "num_frames")
NOT_ATTRIBUTES = (*RATES, "video_metadata")


@dataclass(frozen=True)
class Assembly:
    """The parts of a processor under the options of one call.

    kind: what return_tensors says. has_token_types: whether mm_token_type_ids are wanted.
    """

    tokenizer: Qwen2Tokenizer
    pictures: Qwen2VLImageProcessor
    clips: Qwen2VLVideoProcessor
    call: SortedOptions
    kind: Any
    has_token_types: bool

    def of_messages(
        self, pieces: Sequence[list[Piece]], media: Sequence[Sequence[Part]]
    ) -> ModelInputs:
        """The result of messages: fps and num_frames say which frames of all videos are taken."""
        videos = dict(self.call.videos)
        if videos.get("do_sample_frames") is None and has_rate(videos):
            videos["do_sample_frames"] = True
        if videos.get("video_metadata") is None and videos.get("do_sample_frames") is not False:
            return self.build(pieces, media, has_rates=True)
        if videos.get("do_sample_frames") is False:
            videos |= dict.fromkeys(RATES)
        return self.build(pieces, sampled(media, self.clips.sampling(videos)), has_rates=False)

    def build(
        self, pieces: Sequence[list[Piece]], media: Sequence[Sequence[Part]], *, has_rates: bool
    ) -> ModelInputs:
        """has_rates: whether fps and num_frames of the call say which frames of videos are taken,
        and not the options of each part."""
        how = self.preparation(has_rates)
        prompts = [
            Prompt(text, [prepare_part(part, how) for part in row])
            for text, row in zip(pieces, media, strict=True)
        ]
        text = {**self.tokenizer.init_kwargs, **self.call.text}
        limit, side = self.tokenizer.model_max_length, self.tokenizer.padding_side
        padding = read_padding(text, side, limit, pads=self.kind is not None)
        whole = padding if self.kind is not None else replace(padding, is_allowed=True)
        is_joined = self.call.own.get("patch_dtype") is None
        inputs = collate(prompts, self.tokenizer, whole, is_joined=is_joined)
        if self.has_token_types:
            inputs = self.with_token_types(inputs)
        if text.get("return_attention_mask") is False and self.kind is not None:
            del inputs["attention_mask"]
        return self.with_metadata(shape_result(inputs, self.kind, padding.is_allowed))

    def preparation(self, has_rates: bool) -> Preparation:
        videos, own = self.call.videos, self.call.own
        low, high = read_bounds(
            videos.get("size"), videos.get("min_pixels"), videos.get("max_pixels")
        )
        asked: dict[str, Any] = {"min_pixels": low, "max_pixels": high}
        if has_rates:
            asked |= {"fps": videos.get("fps"), "nframes": videos.get("num_frames")}
        return Preparation(
            self.pictures.settings,
            self.clips.settings,
            self.clips.options().override(asked),
            self.pictures.max_decoded_pixels,
            own.get("patch_dtype") or torch.float32,
            own.get("known_media"),
        )

    def with_token_types(self, inputs: ModelInputs) -> ModelInputs:
        """Behind the ids and their mask mm_token_type_ids [B, L]: 1 in pictures, 2 in videos."""
        ids = inputs.input_ids
        types = (ids == self.tokenizer.image_token_id).long()
        types += 2 * (ids == self.tokenizer.video_token_id).long()
        items = dict(inputs)
        first = {name: items.pop(name) for name in ("input_ids", "attention_mask")}
        return ModelInputs({**first, "mm_token_type_ids": types, **items}, media=inputs.media)

    def with_metadata(self, inputs: ModelInputs) -> ModelInputs:
        if self.clips.return_metadata:
            videos = [item for item in inputs.media if item.kind == "video"]
            inputs["video_metadata"] = [describe(item) for item in videos]
        return inputs

    def media_alone(self, images: Any, videos: Any) -> ModelInputs:
        """What is prepared of media without a text."""
        if images is None and videos is None:
            raise UsageError("neither text nor images nor videos are given")
        kind = None if self.kind == "auto" else self.kind
        found: dict[str, Any] = {}
        items: tuple[MediaItem, ...] = ()
        if images is not None:
            prepared = self.pictures(images, return_tensors=kind)
            found, items = dict(prepared), prepared.media
        if videos is not None:
            options: Any = {name: self.call.videos[name] for name in NOT_ATTRIBUTES
                            if name in self.call.videos}  # fmt: skip
            prepared = self.clips(videos, return_tensors=kind, **options)
            seconds = [item.seconds_per_grid for item in prepared.media]
            found |= dict(prepared) | {
                "second_per_grid_ts": torch.tensor(seconds, dtype=torch.float32, device="cpu")
            }
            items += prepared.media
        return shape_media(ModelInputs(found, media=items), self.kind)


def shape_media(inputs: ModelInputs, kind: Any) -> ModelInputs:
    """As `shape_result`, of media without ids."""
    if inputs.second_per_grid_ts is None:
        return inputs
    return shape_result(inputs, "pt" if kind == "auto" else kind, True)


def changed_videos(
    processor: Qwen2VLVideoProcessor, options: Mapping[str, Any]
) -> Qwen2VLVideoProcessor:
    """The processor of videos under a call's options but those of single videos."""
    own = {key: value for key, value in options.items() if key not in NOT_ATTRIBUTES}
    check_value("num_frames", read_option("nframes", options.get("num_frames")))
    return processor.changed(own)


def has_rate(options: Mapping[str, Any]) -> bool:
    return any(options.get(name) is not None for name in RATES)


def sampled(media: Sequence[Sequence[Part]], sampling: Sampling) -> list[list[Part]]:
    """The media of messages, with what `sampling` says of each video before its own options."""
    videos = [part for row in media for part in row if part.kind == "video"]
    notes = list_metadata(sampling.metadata, len(videos))
    if len(notes) != len(videos):
        raise UsageError(f"video_metadata has {len(notes)} values for {len(videos)} videos")
    waiting = iter(notes)

    def with_options(part: Part) -> Part:
        if part.kind != "video":
            return part
        found = sampling.options_of(not is_frames(part.source), sampling.fps, next(waiting))
        given = {name: value for name, value in found.items() if value is not None}
        return replace(part, options={**given, **part.options})

    return [[with_options(part) for part in row] for row in media]
