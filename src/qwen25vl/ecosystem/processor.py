"""The processor: messages, or a rendered prompt with its media, to ModelInputs; ids back to text.

Sizes and rates follow the nearest word:
the item's own, then the call's, the processor's, the checkpoint's.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Unpack

from qwen25vl.ecosystem.assembly import Assembly, changed_videos
from qwen25vl.ecosystem.encodings import AUTO, Tensors, check_tensors, read_padding
from qwen25vl.ecosystem.image_processor import Qwen2VLImageProcessor
from qwen25vl.ecosystem.multimodal import MultiModalData, count_tokens
from qwen25vl.ecosystem.processor_files import read_template, write_files
from qwen25vl.ecosystem.processor_loading import check_part, load_parts, slot_id
from qwen25vl.ecosystem.processor_options import ProcessorOptions, SortedOptions, sort_options
from qwen25vl.ecosystem.tokenizer import Qwen2Tokenizer
from qwen25vl.ecosystem.video_processor import Qwen2VLVideoProcessor
from qwen25vl.errors import UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.processing.collate import Side
from qwen25vl.processing.conversations import Messages, render_conversations
from qwen25vl.processing.messages import IMAGE_SLOT, VIDEO_SLOT
from qwen25vl.processing.prompt_media import check_texts, media_of_slots, slot_kinds
from qwen25vl.processing.template_language import compile_template
from qwen25vl.processing.tokenizer import Piece
from qwen25vl.processing.video_options import VideoOptions, either_rate


class Qwen2_5_VLProcessor:
    """image_processor, tokenizer and video_processor may be called and changed by themselves.

    max_decoded_pixels: the area of the largest picture that is decoded at full size, an attribute
    of the image_processor; see `from_pretrained`. folder: where it was loaded from.
    """

    return_mm_token_type_ids: bool = True
    image_token: ClassVar[str] = IMAGE_SLOT
    video_token: ClassVar[str] = VIDEO_SLOT

    def __init__(
        self,
        image_processor: Qwen2VLImageProcessor | None = None,
        tokenizer: Qwen2Tokenizer | None = None,
        video_processor: Qwen2VLVideoProcessor | None = None,
        chat_template: str | None = None,
        *,
        folder: Path | None = None,
        max_decoded_pixels: int | None = None,
    ) -> None:
        """Without its video_processor, videos are prepared as pictures are; without a
        chat_template it is the tokenizer's. Raises UsageError for a part of another kind,
        CheckpointError for a tokenizer without slots for media."""
        self.tokenizer = check_part("tokenizer", tokenizer, Qwen2Tokenizer)
        if image_processor is None:
            image_processor = Qwen2VLImageProcessor()
        self.image_processor = check_part("image_processor", image_processor, Qwen2VLImageProcessor)
        if video_processor is None:
            video_processor = Qwen2VLVideoProcessor.from_files(self.image_processor.to_dict(), {})
        self.video_processor = check_part("video_processor", video_processor, Qwen2VLVideoProcessor)
        template = self.tokenizer.chat_template if chat_template is None else chat_template
        self.chat_template: str = template or ""
        self.folder = folder
        if max_decoded_pixels is not None:
            self.max_decoded_pixels = max_decoded_pixels
        self.image_token_id = slot_id(self.tokenizer, self.image_token)
        self.video_token_id = slot_id(self.tokenizer, self.video_token)
        self.image_token_ids, self.video_token_ids = [self.image_token_id], [self.video_token_id]

    def __repr__(self) -> str:
        settings = self.image_processor
        pixels = f"min_pixels={settings.min_pixels}, max_pixels={settings.max_pixels}"
        return (
            f"Qwen2_5_VLProcessor({str(self.folder)!r}, {pixels}, "
            f"padding_side={self.tokenizer.padding_side!r})"
        )

    @classmethod
    def from_pretrained(
        cls,
        name_or_folder: str | Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        size: Mapping[str, int] | None = None,
        padding_side: Side | None = None,
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
        {"shortest_edge", "longest_edge"}. padding_side: "left" unless the tokenizer's files say
        otherwise. max_decoded_pixels: the area of the largest picture that
        is decoded at full size, at up to 14 bytes per pixel (2.5 GB for the default, 178,956,970).
        A larger JPEG is decoded smaller, with a warning; other larger pictures are refused.
        options: attributes of the parts (patch_size, do_normalize, model_max_length, …), and as in
        `load_model`. Raises CheckpointError, HubError or OptionError.
        """
        hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
        hub["local_files_only"] = local_files_only
        named: dict[str, Any] = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        named |= {"size": size, "padding_side": padding_side}
        given = {**options, **{key: value for key, value in named.items() if value is not None}}
        folder, parts = load_parts(name_or_folder, hub, given, cls.from_pretrained)
        template, limit = read_template(folder), max_decoded_pixels
        return cls(*parts, template, folder=folder, max_decoded_pixels=limit)

    def save_pretrained(self, folder: str | Path) -> list[str]:
        """Write the processor's files beside a model, and return their paths; `transformers` reads
        them too."""
        if self.tokenizer.folder is None:
            raise UsageError(
                "this processor was not loaded from a folder, so it has no tokenizer files to save"
            )
        video = self.video_processor.stated(self.image_processor.to_dict())
        image = self.image_processor.to_dict()
        written = write_files(Path(folder), image, video, self.chat_template)
        return [*written, *self.tokenizer.save_pretrained(folder)]

    def apply_chat_template(
        self,
        conversation: Messages | Sequence[Messages],
        chat_template: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        tokenize: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        add_vision_id: bool = False,
        return_dict: bool = False,
        return_tensors: Tensors | str = AUTO,
        video_fps: float | None = None,
        **options: Unpack[ProcessorOptions],
    ) -> Any:
        """Render messages, and with `tokenize` make them ready for the model.

        conversation: a list of messages in any common shape (docs/messages.md), or a list of such
        lists. Text in it is plain text even where it spells a control token, except for those that
        the model itself writes (<tool_call>, …) in assistant and system messages. tools: JSON
        schemas, for a template that uses them. add_generation_prompt: end with the beginning of an
        assistant's message. continue_final_message: end inside the last message, which must end
        with text. add_vision_id: number pictures and videos. video_fps (or fps), num_frames: the
        frames to take from every video; min_pixels, max_pixels: of every picture and frame; an
        item's own options take precedence. Other options are those of a call, in processor_kwargs
        too, and variables that the template reads. patch_dtype: give `inputs.Patches` in this
        precision, for inputs that are used once. known_media: digests of media whose patches are
        computed only if they are read.

        Returns the text (a list of them for a list of conversations); with tokenize and return_dict
        ModelInputs; with tokenize alone the ids of each conversation, padded to one tensor where
        return_tensors="pt". Raises MessageError, MediaError, OptionError, UsageError.
        """
        check_tensors(return_tensors)
        template = chat_template or self.chat_template
        names = compile_template(template)[1]
        variables = {key: value for key, value in options.items() if key in names}
        rest = {key: value for key, value in options.items() if key not in names}
        call = sort_options(rest, type(self).apply_chat_template)
        rendered = render_conversations(
            conversation,
            template,
            self.tokenizer,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            add_vision_id=add_vision_id,
            variables=variables,
        )
        if not tokenize:
            return rendered.texts
        call.videos["fps"] = either_rate(video_fps, call.videos.get("fps"))
        if return_tensors == AUTO and not return_dict:
            return_tensors = None
        inputs = self._assembly(call, return_tensors).of_messages(rendered.pieces, rendered.media)
        return inputs if return_dict else inputs.input_ids

    def __call__(
        self,
        images: Any = None,
        text: str | Sequence[str] | None = None,
        videos: Any = None,
        *,
        return_tensors: Tensors | str = AUTO,
        **options: Unpack[ProcessorOptions],
    ) -> ModelInputs:
        """Prepare rendered prompts with their media, as in the official README and qwen-vl-utils.

        text: one or several; each <|image_pad|> and <|video_pad|> in them is a slot; without any
        the media alone are prepared. images, videos: one or a list, in the order of the slots over
        all texts. With an entry for each text in images (a list of pictures, or None), each must
        fit that text's slots. fps: for all videos, or one for each; for a list of frames it is the
        rate at which they were taken. video_metadata: the origin of such frames (fps,
        frames_indices, total_num_frames), which gives that rate if fps does not. do_sample_frames:
        True takes num_frames of the frames given, or fps of them per second; False is refused for
        video files, which are always sampled.

        padding: True, "longest", "max_length" or False; by default prompts are padded where tensors
        are wanted. max_length, truncation: cut a prompt, but never inside a picture.
        return_tensors: "pt" (the default), "np", or None for lists. text_kwargs, images_kwargs,
        videos_kwargs: any of these options by kind. Raises MessageError if slots and media do not
        match, MediaError, OptionError, UsageError.
        """
        call = sort_options(options, type(self).__call__)
        assembly = self._assembly(call, return_tensors)
        if text is None:
            return assembly.media_alone(images, videos)
        texts = check_texts(text)
        slots = [slot_kinds(self.tokenizer.control_pattern.split(prompt)) for prompt in texts]
        media = media_of_slots(slots, images, videos, assembly.clips.sampling(call.videos))
        pieces: list[list[Piece]] = [[(prompt, True)] for prompt in texts]
        return assembly.build(pieces, media, has_rates=False)

    def _assembly(self, call: SortedOptions, return_tensors: Any) -> Assembly:
        """The parts under the options of one call."""
        given = {**self.tokenizer.init_kwargs, **call.text}
        read_padding(given, self.tokenizer.padding_side, self.tokenizer.model_max_length, pads=True)
        types = call.text.get("return_mm_token_type_ids")
        kind = check_tensors(call.own.get("return_tensors", return_tensors))
        return Assembly(
            self.tokenizer,
            self.image_processor.changed(call.images),
            changed_videos(self.video_processor, call.videos),
            call,
            kind,
            self.return_mm_token_type_ids if types is None else bool(types),
        )

    def decode(
        self, ids: Any, skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> Any:  # fmt: skip
        """Ids of one sequence to text, those of several to a list of texts."""
        return self.tokenizer.decode(ids, skip_special_tokens)

    def batch_decode(
        self, sequences: Any, skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:  # fmt: skip
        """`decode` of each."""
        return self.tokenizer.batch_decode(sequences, skip_special_tokens)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> list[str]:  # fmt: skip
        """The ecosystem's name for `batch_decode` without special tokens."""
        return self.batch_decode(generated_outputs, skip_special_tokens)

    @property
    def max_decoded_pixels(self) -> int:
        """That of its image_processor."""
        return self.image_processor.max_decoded_pixels

    @max_decoded_pixels.setter
    def max_decoded_pixels(self, value: int) -> None:
        self.image_processor.max_decoded_pixels = value

    @property
    def video_options(self) -> VideoOptions:
        """What is asked of every video, and what no one asks for as None."""
        return self.video_processor.options()

    @property
    def model_input_names(self) -> list[str]:
        """The keys that a call may give."""
        parts = (self.image_processor, self.tokenizer, self.video_processor)
        names = [name for part in parts for name in part.model_input_names]
        return [*names, "second_per_grid_ts", "mm_token_type_ids"]

    def to_dict(self) -> dict[str, Any]:
        """The settings of the parts but the tokenizer."""
        image, video = self.image_processor.to_dict(), self.video_processor.to_dict()
        own = {"processor_class": type(self).__name__}
        return {"image_processor": image, "video_processor": video, **own}

    def to_json_string(self) -> str:
        return json.dumps(self.to_dict(), indent=2, sort_keys=True) + "\n"

    def _get_num_multimodal_tokens(
        self,
        image_sizes: Sequence[Sequence[int]] | None = None,
        video_sizes: Sequence[Sequence[int]] | None = None,
        **options: Any,
    ) -> MultiModalData:
        """Numbers of visual tokens of media of these sizes; vLLM's name for it."""
        parts = self.image_processor, self.video_processor
        return count_tokens(*parts, image_sizes, video_sizes, options)


AutoProcessor = Qwen2_5_VLProcessor
