"""The processor: messages, or a rendered prompt with its media, to ModelInputs; ids back to text.

Sizes and rates follow the nearest word:
the item's own, then the call's, the processor's, the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from qwen25vl.arguments import names_unknown_options
from qwen25vl.errors import CheckpointError, UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.processing.collate import (
    Prompt,
    Side,
    check_side,
    check_tensors,
    collate,
    unpadded_ids,
)
from qwen25vl.processing.conversations import Messages, render_conversations
from qwen25vl.processing.image import ImageSettings, check_number, read_bounds
from qwen25vl.processing.messages import IMAGE_SLOT, VIDEO_SLOT, Part
from qwen25vl.processing.picture_file import MAX_DECODED_PIXELS
from qwen25vl.processing.prepare import Prepared, prepare_part
from qwen25vl.processing.processor_files import read_settings, read_template, write_files
from qwen25vl.processing.prompt_media import check_texts, find_slots, media_of_slots
from qwen25vl.processing.tokenizer import Piece, Tokenizer
from qwen25vl.processing.video import VideoOptions
from qwen25vl.processing.video_options import either_rate


@dataclass(eq=False)
class Qwen2_5_VLProcessor:
    """tokenizer, image_processor (settings for pictures), video_options (defaults for videos).

    max_decoded_pixels: the area of the largest picture that is decoded
    at full size; see `from_pretrained`.
    """

    tokenizer: Tokenizer
    image_processor: ImageSettings
    chat_template: str
    video_options: VideoOptions
    padding_side: Side = "left"
    folder: Path | None = None
    max_decoded_pixels: int = MAX_DECODED_PIXELS

    def __post_init__(self) -> None:
        check_number("max_decoded_pixels", self.max_decoded_pixels, whole=True)
        check_side(self.padding_side)
        for slot in (IMAGE_SLOT, VIDEO_SLOT):
            if slot not in self.tokenizer.control_ids:
                raise CheckpointError(
                    f"the tokenizer has no token {slot}; this is not a Qwen2.5-VL checkpoint"
                )

    def __repr__(self) -> str:
        settings = self.image_processor
        pixels = f"min_pixels={settings.min_pixels}, max_pixels={settings.max_pixels}"
        return (
            f"Qwen2_5_VLProcessor({str(self.folder)!r}, {pixels}, "
            f"padding_side={self.padding_side!r})"
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        size: Mapping[str, int] | None = None,
        padding_side: Side = "left",
        use_fast: bool | None = None,
        max_decoded_pixels: int | None = None,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Any,
    ) -> Qwen2_5_VLProcessor:
        """Read a checkpoint folder's (or a hub name's) processor files.

        min_pixels, max_pixels: bounds on a picture's area at model size, instead of the
        checkpoint's; max_pixels bounds a video's frames too. size: their newer names
        {"shortest_edge", "longest_edge"}. use_fast: accepted for compatibility; the only
        implementation equals the fast one. max_decoded_pixels: the area of the largest picture that
        is decoded at full size, at up to 14 bytes per pixel (2.5 GB for the default, 178,956,970).
        A larger JPEG is decoded smaller, with a warning; other larger pictures are refused.
        options: as in `load_model`. Raises CheckpointError, HubError or OptionError.
        """
        from qwen25vl.hub import resolve_folder
        from qwen25vl.load_options import check_options

        check_options(options, cls.from_pretrained)
        if use_fast not in (None, True, False):
            raise UsageError(f"use_fast is {use_fast!r}; it must be True or False")
        min_pixels, max_pixels = read_bounds(size, min_pixels, max_pixels)
        hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
        folder = resolve_folder(
            name_or_folder, local_files_only=local_files_only, files="processor", **hub
        )
        settings, video_options = read_settings(folder)
        settings = settings.with_budget(min_pixels, max_pixels)
        video_options = video_options.override(
            {"max_pixels": None if max_pixels is None else settings.max_pixels}
        )
        tokenizer = Tokenizer.from_folder(folder)
        processor = cls(
            tokenizer, settings, read_template(folder), video_options, padding_side, folder
        )
        if max_decoded_pixels is None:
            return processor
        return replace(processor, max_decoded_pixels=max_decoded_pixels)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor's files beside a model; `transformers` reads them too."""
        if self.folder is None:
            raise UsageError(
                "this processor was not loaded from a folder, so it has no tokenizer files to save"
            )
        write_files(
            self.folder, Path(folder), self.image_processor, self.video_options, self.chat_template
        )

    @names_unknown_options
    def apply_chat_template(
        self,
        conversation: Messages | Sequence[Messages],
        *,
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        add_vision_id: bool = False,
        return_dict: bool = False,
        return_tensors: str | None = None,
        padding: bool | str = True,
        padding_side: Side | None = None,
        video_fps: float | None = None,
        fps: float | None = None,
        num_frames: int | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        patch_dtype: torch.dtype | None = None,
        known_media: Collection[bytes] | None = None,
    ) -> Any:
        """Render messages, and with `tokenize` make them ready for the model.

        conversation: a list of messages in any common shape (docs/messages.md), or a list of such
        lists. Text in it is plain text even where it spells a control token, except for those that
        the model itself writes (<tool_call>, <|box_start|>, …) in assistant and system messages.
        tools: JSON schemas, for a template that uses them. add_generation_prompt: end with the
        beginning of an assistant's message. continue_final_message: end inside the last message,
        which must end with text. add_vision_id: number pictures and videos. video_fps (or fps),
        num_frames: the frames to take from every video; min_pixels, max_pixels: of every picture
        and frame; an item's own options take precedence. padding_side: "left" by default.
        patch_dtype: give `inputs.Patches` in this precision, for inputs that are used once.
        known_media: digests of media whose patches are computed only if they are read.

        Returns the text (a list of them for a list of conversations); with tokenize and return_dict
        ModelInputs; with tokenize alone the ids of each conversation, padded to one tensor where
        return_tensors="pt". Raises MessageError, MediaError, OptionError, UsageError.
        """
        check_tensors(return_tensors)
        rendered = render_conversations(
            conversation,
            chat_template or self.chat_template,
            self.tokenizer,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            add_vision_id=add_vision_id,
        )
        if not tokenize:
            return rendered.texts
        rates = {"fps": either_rate(video_fps, fps), "nframes": num_frames}
        prepared = self.prepare(
            rendered.media, min_pixels, max_pixels, rates, patch_dtype, known_media
        )
        inputs = self.collate(rendered.pieces, prepared, padding, padding_side, patch_dtype)
        if return_dict:
            return inputs
        return inputs.input_ids if return_tensors else unpadded_ids(inputs)

    @names_unknown_options
    def __call__(
        self,
        text: str | Sequence[str],
        images: Any = None,
        videos: Any = None,
        *,
        fps: float | Sequence[float] | None = None,
        do_sample_frames: bool | None = None,
        video_metadata: Sequence[Mapping[str, Any]] | Mapping[str, Any] | None = None,
        padding: bool | str = True,
        padding_side: Side | None = None,
        return_tensors: str | None = "pt",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        patch_dtype: torch.dtype | None = None,
    ) -> ModelInputs:
        """Prepare rendered prompts with their media, as in the official README and qwen-vl-utils.

        text: one or several; each <|image_pad|> and <|video_pad|> in them is a slot. images,
        videos: one or a list, in the order of the slots over all texts. With an entry for each text
        in images (a list of pictures, or None), each must fit that text's slots. fps: for all
        videos, or one for each; for a list of frames it is the rate at which they were taken.
        video_metadata: the origin of such frames (fps, frames_indices, total_num_frames), which
        gives that rate if fps does not. do_sample_frames: must be True for video files, which are
        always sampled, and False for lists of frames, which are used completely.
        patch_dtype: as in `apply_chat_template`. Raises MessageError if slots and media do not
        match, MediaError, UsageError.
        """
        check_tensors(return_tensors)
        texts = check_texts(text)
        slots = [find_slots(self.tokenizer.control_pattern.split(prompt)) for prompt in texts]
        media = media_of_slots(slots, images, videos, fps, do_sample_frames, video_metadata)
        prepared = self.prepare(media, min_pixels, max_pixels, {}, patch_dtype)
        pieces: list[list[Piece]] = [[(prompt, True)] for prompt in texts]
        return self.collate(pieces, prepared, padding, padding_side, patch_dtype)

    def prepare(
        self,
        media: Sequence[Sequence[Part]],
        min_pixels: int | None,
        max_pixels: int | None,
        rates: Mapping[str, Any],
        patch_dtype: torch.dtype | None = None,
        known: Collection[bytes] | None = None,
    ) -> list[list[Prepared]]:
        """The media of each conversation under the call's sizes, `rates` and their own options."""
        settings = self.image_processor.with_budget(min_pixels, max_pixels)
        video_options = self.video_options.override(
            {"min_pixels": min_pixels, "max_pixels": max_pixels, **rates}
        )
        dtype = patch_dtype or torch.float32
        given = settings, video_options, self.max_decoded_pixels, dtype, known
        return [[prepare_part(part, *given) for part in row] for row in media]

    def collate(
        self,
        pieces: list[list[Piece]],
        prepared: list[list[Prepared]],
        padding: bool | str,
        padding_side: Side | None,
        patch_dtype: torch.dtype | None,
    ) -> ModelInputs:
        """Prompts and the media of their slots as one batch."""
        prompts = [Prompt(text, media) for text, media in zip(pieces, prepared, strict=True)]
        side = padding_side or self.padding_side
        return collate(prompts, self.tokenizer, padding, side, is_joined=patch_dtype is None)

    def decode(
        self,
        ids: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """Ids of one sequence to text. clean_up_tokenization_spaces has no effect on byte-level
        tokens, as in transformers."""
        numbers = ids.tolist() if hasattr(ids, "tolist") else ids
        numbers = [numbers] if isinstance(numbers, int) else list(numbers)
        if any(map(np.ndim, numbers)):
            raise UsageError("decode takes the ids of one sequence; use batch_decode for several")
        return self.tokenizer.decode(numbers, skip_special_tokens)

    def batch_decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """`decode` of each."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def post_process_image_text_to_text(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:
        """The ecosystem's name for `batch_decode` without special tokens."""
        return self.batch_decode(generated_outputs, skip_special_tokens)


AutoProcessor = Qwen2_5_VLProcessor
