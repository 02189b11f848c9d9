"""The processor: messages, or a rendered prompt with its media, to ModelInputs; ids back to text.

Sizes and rates follow the nearest word: the item's own, then the call's, the processor's, the checkpoint's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from qwen25vl.errors import CheckpointError, MessageError, OptionError, UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.processing.chat import IMAGE_SLOT, VIDEO_SLOT, Part, is_batch, read_messages, render
from qwen25vl.processing.collate import Prompt, Side, check_counts, check_side, collate
from qwen25vl.processing.image import ImageSettings
from qwen25vl.processing.prepare import Prepared, prepare_picture, prepare_video
from qwen25vl.processing.processor_files import copy_files, read_settings, read_template
from qwen25vl.processing.tokenizer import Tokenizer
from qwen25vl.processing.video import VideoOptions

Messages = Sequence[Mapping[str, Any]]


class Qwen2_5_VLProcessor:
    """tokenizer, image_processor (how pictures are prepared), video_options (what is asked of videos by default)."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        image_processor: ImageSettings,
        chat_template: str,
        video_options: VideoOptions,
        padding_side: Side = "left",
        folder: Path | None = None,
    ) -> None:
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.chat_template = chat_template
        self.video_options = video_options
        self.padding_side: Side = check_side(padding_side)
        self.folder = folder
        for slot in (IMAGE_SLOT, VIDEO_SLOT):
            if slot not in tokenizer.control_ids:
                raise CheckpointError(f"the tokenizer has no token {slot}; this is no Qwen2.5-VL checkpoint")

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
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
    ) -> Qwen2_5_VLProcessor:
        """Read a checkpoint folder's (or a hub name's) processor files.

        min_pixels, max_pixels: bounds on a picture's area at model size, instead of the checkpoint's; max_pixels
        bounds a video's frames too. size: their newer names {"shortest_edge", "longest_edge"}. use_fast: taken for
        the ecosystem's sake; there is one implementation, the fast one's equal. Raises CheckpointError or HubError.
        """
        from qwen25vl.loading.hub import resolve_folder

        if use_fast not in (None, True, False):
            raise UsageError(f"use_fast is {use_fast!r}; it must be True or False")
        if size is not None:
            if unknown := sorted(size.keys() - {"shortest_edge", "longest_edge"}):
                raise OptionError(f"size has {', '.join(unknown)}; known are shortest_edge and longest_edge")
            min_pixels, max_pixels = min_pixels or size.get("shortest_edge"), max_pixels or size.get("longest_edge")
        folder = resolve_folder(
            name_or_folder,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            files="processor",
        )
        images, videos = read_settings(folder)
        images = images.with_budget(min_pixels, max_pixels)
        videos = videos.override({"max_pixels": max_pixels})
        return cls(Tokenizer.from_folder(folder), images, read_template(folder), videos, padding_side, folder)

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the processor's files beside a model; `transformers` reads them too."""
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        if self.folder is None:
            raise UsageError("this processor was not loaded from a folder, so it has no tokenizer files to save")
        copy_files(self.folder, target)
        settings = json.dumps(self.image_processor.to_dict(), indent=2)
        (target / "preprocessor_config.json").write_text(settings + "\n", encoding="utf-8")

    def apply_chat_template(
        self,
        conversation: Messages | Sequence[Messages],
        *,
        chat_template: str | None = None,
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
    ) -> Any:
        """Render messages, and with `tokenize` make them ready for the model.

        conversation: a list of messages in any common shape (see processing/chat.py), or a list of such lists.
        add_generation_prompt: end where the assistant is to speak; continue_final_message: end inside the last
        message; add_vision_id: number pictures and videos; padding_side: "left" by default; video_fps (or fps) or
        num_frames: what is looked at of every video; min_pixels, max_pixels: of every picture and frame. What an item
        says of itself goes before all of these.

        Returns the text (a list of them for a list of conversations); with tokenize and return_dict ModelInputs; with
        tokenize alone the ids, as a tensor where return_tensors="pt". Raises MessageError, MediaError, UsageError.
        """
        batched = is_batch(conversation)
        conversations: Any = conversation if batched else [conversation]
        template = chat_template or self.chat_template
        check_tensors(return_tensors)
        rendered, parts = [], []
        for messages in map(read_messages, conversations):
            rendered.append(
                render(
                    template,
                    messages,
                    add_generation_prompt=add_generation_prompt,
                    add_vision_id=add_vision_id,
                    continue_final_message=continue_final_message,
                )
            )
            parts.append([part for message in messages for part in message.parts if part.kind != "text"])
        if not tokenize:
            texts = ["".join(text for text, _ in pieces) for pieces in rendered]
            return texts if batched else texts[0]
        if None not in (fps, video_fps) and fps != video_fps:
            raise UsageError(f"video_fps {video_fps} and fps {fps} are two names of one option; give one")
        sizes = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        rates = {"fps": video_fps if video_fps is not None else fps, "nframes": num_frames}
        prompts = [
            Prompt(pieces, [self.prepare(part, sizes, rates) for part in media])
            for pieces, media in zip(rendered, parts, strict=True)
        ]
        inputs = collate(prompts, self.tokenizer, padding, padding_side or self.padding_side)
        if return_dict:
            return inputs
        if return_tensors:
            return inputs.input_ids
        rows = [ids[mask.bool()].tolist() for ids, mask in zip(inputs.input_ids, inputs.attention_mask, strict=True)]
        return rows if batched else rows[0]

    def __call__(
        self,
        text: str | Sequence[str],
        images: Any = None,
        videos: Any = None,
        *,
        fps: float | Sequence[float] | None = None,
        do_sample_frames: bool | None = None,
        padding: bool | str = True,
        padding_side: Side | None = None,
        return_tensors: str | None = "pt",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
    ) -> ModelInputs:
        """Rendered prompts with their media, as the official README and qwen-vl-utils call it.

        text: one or several; each <|image_pad|> and <|video_pad|> in them is a slot. images, videos: one or a list,
        in the order of the slots over all texts. fps: of every video, or one for each; of frames given one by one it
        is the rate they were taken at. do_sample_frames: files are sampled, frames given one by one never are.
        Raises MessageError where slots and media do not fit, MediaError, UsageError.
        """
        check_tensors(return_tensors)
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(prompt, str) for prompt in texts):
            raise UsageError("text must be a rendered prompt or a list of them")
        image_list, video_list = flatten(images), as_videos(videos)
        rates = list(fps) if isinstance(fps, Sequence | torch.Tensor) else [fps] * len(video_list)
        if len(rates) != len(video_list):
            raise UsageError(f"fps has {len(rates)} values for {len(video_list)} videos")
        if do_sample_frames and any(not isinstance(video, str | Path | bytes) for video in video_list):
            raise UsageError("do_sample_frames=True needs video files; the frames here are given one by one")
        sizes = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        image_parts = iter([Part("image", source=image) for image in image_list])
        video_parts = iter(
            Part("video", source=video, options={} if rate is None else {"fps": float(rate)})
            for video, rate in zip(video_list, rates, strict=True)
        )
        slots = [self.find_slots(prompt) for prompt in texts]
        check_counts("picture", sum(row.count(IMAGE_SLOT) for row in slots), len(image_list))
        check_counts("video", sum(row.count(VIDEO_SLOT) for row in slots), len(video_list))
        prompts = [
            Prompt(
                [(prompt, True)],
                [self.prepare(next(image_parts if slot == IMAGE_SLOT else video_parts), sizes, {}) for slot in row],
            )
            for prompt, row in zip(texts, slots, strict=True)
        ]
        return collate(prompts, self.tokenizer, padding, padding_side or self.padding_side)

    def find_slots(self, prompt: str) -> list[str]:
        return [part for part in self.tokenizer.control_pattern.split(prompt) if part in (IMAGE_SLOT, VIDEO_SLOT)]

    def prepare(self, part: Part, sizes: Mapping[str, Any], rates: Mapping[str, Any]) -> Prepared:
        """A picture or video of a message; its own options go over the call's `sizes` and (for videos) `rates`."""
        if part.source is None:
            raise MessageError(
                f"a message has a slot for {'a picture' if part.kind == 'image' else 'a video'} without content; "
                f"name its url, path or {part.kind}, or render first (tokenize=False) and give it to the processor"
            )
        own = {name: value for name, value in part.options.items() if value is not None}
        if part.kind == "image":
            return prepare_picture(part.source, dict(sizes) | own, self.image_processor)
        options = self.video_options.override(sizes).override(rates).override(own)
        return prepare_video(part.source, options, self.image_processor)

    def decode(
        self, ids: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> str:
        """Ids of one sequence to text. clean_up_tokenization_spaces has no effect on byte-level tokens, as in
        transformers."""
        return self.tokenizer.decode([ids] if isinstance(ids, int) else list(ids), skip_special_tokens)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False, clean_up_tokenization_spaces: bool | None = None
    ) -> list[str]:
        """`decode` of each."""
        return [self.decode(ids, skip_special_tokens) for ids in sequences]

    def post_process_image_text_to_text(self, generated_outputs: Any, skip_special_tokens: bool = True) -> list[str]:
        """The ecosystem's name for `batch_decode` without special tokens."""
        return self.batch_decode(generated_outputs, skip_special_tokens)


AutoProcessor = Qwen2_5_VLProcessor


def check_tensors(return_tensors: str | None) -> None:
    if return_tensors not in (None, "pt"):
        raise UsageError(f'return_tensors is {return_tensors!r}; only torch\'s "pt" is there')


def flatten(images: Any) -> list[Any]:
    """One picture, a list of them, or a list of lists (one for each text)."""
    if images is None:
        return []
    if not isinstance(images, list | tuple):
        return [images]
    return [picture for entry in images for picture in (entry if isinstance(entry, list | tuple) else [entry])]


def as_videos(videos: Any) -> list[Any]:
    """One video, or a list of them; a list of pictures within the list is one video."""
    if videos is None:
        return []
    return list(videos) if isinstance(videos, list | tuple) else [videos]
