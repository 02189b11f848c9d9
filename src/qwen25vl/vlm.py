"""The short way for people: load a model, ask about pictures and videos, get an answer.

vlm = qwen25vl.load("Qwen/Qwen2.5-VL-3B-Instruct", quantize="int4")
answer = vlm.ask("Find every cup. Answer in JSON.", images=["table.jpg"])
print(answer, answer.boxes, answer.usage)
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from qwen25vl.answer import Answer, AnswerStream, Stopwatch
from qwen25vl.arguments import names_unknown_options, refuse_unknown
from qwen25vl.demo import FOLDER as DEMO_FOLDER
from qwen25vl.demo import folder_on_disk
from qwen25vl.errors import UsageError, named_out_of_memory
from qwen25vl.progress import Progress

if TYPE_CHECKING:
    import torch

    from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
    from qwen25vl.engine.prefix import PrefixCache
    from qwen25vl.engine.visual_cache import VisualCache
    from qwen25vl.model.attention import Implementation
    from qwen25vl.processing.processor import Qwen2_5_VLProcessor

Messages = list[Any]
PREFIX_CACHE_BYTES = 512 * 2**20
QUESTION_OPTIONS = (
    "images", "videos", "system", "fps", "min_pixels", "max_pixels", "continue_final_message"
)  # fmt: skip


class GenerationOptions(TypedDict, total=False):
    """Options of one answer; see GenerationConfig. None stands for the checkpoint's value."""

    max_new_tokens: int | None
    min_new_tokens: int | None
    do_sample: bool | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    frequency_penalty: float | None
    stop_strings: str | Sequence[str] | None
    max_repeated_tokens: int | None
    prompt_lookup_num_tokens: int | None
    max_matching_ngram_size: int | None
    seed: int | None
    max_time: float | None


def load(
    name_or_folder: str | Path | None = None,
    *,
    dtype: torch.dtype | str = "auto",
    quantize: str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: Implementation = "sdpa",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    max_decoded_pixels: int | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    progress: Progress | None = None,
    visual_cache_bytes: int = 256 * 2**20,
    prefix_cache_bytes: int | None = None,
    **options: Any,
) -> VisionLanguageModel:
    """Load a checkpoint folder or a hub name; without one, the small demo model that comes with the
    package.

    quantize: "int8" or "int4"; with "+vision" appended, the vision encoder's blocks too, to 8 bits.
    min_pixels, max_pixels: bounds on the area of a picture as the model sees it.
    max_decoded_pixels: the area of the largest picture that is decoded at full size (178,956,970
    pixels, which take 2.5 GB while they are decoded). progress: called with (stage, done, total),
    here and in every later question. visual_cache_bytes: memory for the visual tokens of pictures,
    kept for later questions (5.6 MB for 1024×1024 pixels and the 3B model); 0 keeps none.
    prefix_cache_bytes: memory for the keys and values of finished questions, so that a later one
    that begins alike (the same picture, the next turn) is not read again (36 kB for each token of
    the 3B model); by default 512 MiB where the compiled kernels serve, and answers then keep every
    bit, elsewhere 0. options: options of transformers that have no effect here (trust_remote_code,
    low_cpu_mem_usage, …). Raises CheckpointError or HubError if there is no model to load,
    UsageError for invalid options.
    """
    from qwen25vl.ecosystem.auto import load_model
    from qwen25vl.engine.prefix import PrefixCache
    from qwen25vl.engine.visual_cache import VisualCache
    from qwen25vl.hub import resolve_folder
    from qwen25vl.load_options import check_options
    from qwen25vl.processing.processor import Qwen2_5_VLProcessor

    check_options(options, load)
    cache = VisualCache(visual_cache_bytes)
    PrefixCache(prefix_cache_bytes or 0)  # refuses a wrong number before the model is loaded
    source = folder_on_disk(DEMO_FOLDER) if name_or_folder is None else name_or_folder
    hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
    folder = resolve_folder(source, local_files_only=local_files_only, **hub)
    processor = Qwen2_5_VLProcessor.from_pretrained(
        folder, min_pixels=min_pixels, max_pixels=max_pixels, max_decoded_pixels=max_decoded_pixels
    )
    how: dict[str, Any] = {
        "attn_implementation": attn_implementation,
        "quantization_config": quantize,
    }
    model = load_model(folder, dtype=dtype, device_map=device, progress=progress, **how)
    prefixes = open_prefix_cache(model, prefix_cache_bytes)
    return VisionLanguageModel(model, processor, progress, cache, prefixes)


def open_prefix_cache(
    model: Qwen2_5_VLForConditionalGeneration, max_bytes: int | None
) -> PrefixCache:
    """Room for kept caches: by default some where the compiled kernels serve, elsewhere none."""
    from qwen25vl.engine.prefix import PrefixCache
    from qwen25vl.model.layers import has_compiled_layers

    is_exact = has_compiled_layers(model.dtype, model.device)
    if max_bytes is None:
        return PrefixCache(PREFIX_CACHE_BYTES if is_exact else 0)
    if max_bytes and not is_exact:
        warnings.warn(
            f"prefix_cache_bytes={max_bytes}: no compiled kernels serve {model.dtype} on "
            f"{model.device}, so a reused prefix may change the last bits of an answer",
            stacklevel=3,
        )
    return PrefixCache(max_bytes)


@dataclass
class VisionLanguageModel:
    """A model with its processor. progress: called with (stage, done, total) while it works on a
    question."""

    model: Qwen2_5_VLForConditionalGeneration
    processor: Qwen2_5_VLProcessor
    progress: Progress | None = None
    visual_cache: VisualCache | None = None
    prefix_cache: PrefixCache | None = None

    def __repr__(self) -> str:
        weights = sum(tensor.nbytes for tensor in self.model.state_dict().values())
        kind = str(self.model.dtype).removeprefix("torch.")
        where = f"{weights / 1e6:.0f} MB of weights, {kind} on {self.model.device}"
        return f"VisionLanguageModel({str(self.processor.folder)!r}, {where}, {self.visual_cache})"

    def ask(
        self,
        question: str | Messages,
        images: Any = (),
        videos: Any = (),
        *,
        system: str | None = None,
        fps: float | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        continue_final_message: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Ask, and wait for the whole answer.

        question: a text, which is put after the images and videos, or a list of messages that holds
        everything. images, videos: one source or a list of them (path, URL, bytes, open file, PIL,
        numpy, torch); a list of still pictures in videos is the frames of one video. system:
        replaces the template's system message. fps: frames per second to take. min_pixels,
        max_pixels: for these images and videos. continue_final_message: continue the last message
        instead of starting an answer; the default is to do so if it is the assistant's (the
        answer's text is only what was added). options: see GenerationConfig; an unknown one raises
        OptionError.
        """
        own: dict[str, Any] = {"system": system, "fps": fps, "min_pixels": min_pixels}
        own |= {"max_pixels": max_pixels, "continue_final_message": continue_final_message}
        stream = self.stream(question, images, videos, **own, **options)
        for _ in stream:
            pass
        return stream.answer

    @named_out_of_memory()
    def stream(
        self,
        question: str | Messages,
        images: Any = (),
        videos: Any = (),
        *,
        system: str | None = None,
        fps: float | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        continue_final_message: bool | None = None,
        **options: Unpack[GenerationOptions],
    ) -> AnswerStream:
        """Ask, and get the answer chunk by chunk: `for chunk in …: print(chunk.text, end="")`, then
        `.answer`."""
        from qwen25vl.processing.messages import ends_with_answer

        refuse_unknown(options, (*GenerationOptions.__annotations__, *QUESTION_OPTIONS))
        watch = Stopwatch(self.progress)
        messages = compose(question, images, videos, system)
        sources = find_sources(messages)
        sizes: dict[str, Any] = {
            "video_fps": fps,
            "min_pixels": min_pixels,
            "max_pixels": max_pixels,
        }
        if continue_final_message is None:
            continue_final_message = ends_with_answer(messages)
        sizes |= {"continue_final_message": continue_final_message}
        sizes |= {"add_generation_prompt": not continue_final_message}
        sizes |= {"tokenize": True, "return_dict": True, "patch_dtype": self.model.dtype}
        inputs = self.processor.apply_chat_template(messages, **sizes)
        watch.lap("preprocess")
        cache = self.visual_cache
        chunks = self.model.stream(
            inputs,
            self.processor.tokenizer,
            progress=watch.report,
            visual_cache=cache,
            prefix_cache=self.prefix_cache,
            **options,
        )
        num_tokens = int(inputs.attention_mask.sum())
        return AnswerStream(
            chunks, self.processor.tokenizer, watch, num_tokens, inputs.media, sources
        )

    @names_unknown_options
    def chat(self, system: str | None = None, *, fps: float | None = None) -> Conversation:
        """Start a conversation; fps as in `ask`, for all its videos."""
        return Conversation(self, system, fps)


@dataclass
class Conversation:
    """The turns of one conversation; each question may add pictures and videos.

    Pictures are read once, when they are given; of a video file only the path is kept.
    Every question is answered from the whole conversation so far. The model's earlier answers keep
    their own control tokens (tool calls, boxes). A turn that got no text as an answer (interrupted
    or failed) is dropped; of an interrupted answer the text written so far is kept.
    """

    vlm: VisionLanguageModel
    system: str | None = None
    fps: float | None = None
    turns: list[tuple[dict[str, Any], AnswerStream]] = field(default_factory=list)

    def __repr__(self) -> str:
        return f"Conversation({len(self.turns)} turns, system={self.system!r}, fps={self.fps})"

    @property
    def messages(self) -> Messages:
        """The conversation so far, in the shape that `ask` takes."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for question, stream in self.turns:
            if stream.spoken_text:
                messages += [question, {"role": "assistant", "content": stream.spoken_text}]
        return messages

    def ask(
        self,
        question: str,
        images: Any = (),
        videos: Any = (),
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Ask the next question, and wait for the whole answer."""
        stream = self.stream(question, images, videos, **options)
        for _ in stream:
            pass
        return stream.answer

    @named_out_of_memory()
    def stream(
        self,
        question: str,
        images: Any = (),
        videos: Any = (),
        **options: Unpack[GenerationOptions],
    ) -> AnswerStream:
        """Ask the next question, and get the answer chunk by chunk."""
        known = ("images", "videos", "min_pixels", "max_pixels", *GenerationOptions.__annotations__)
        refuse_unknown(options, known)
        if self.turns:
            self.turns[-1][1].close()
        (message,) = compose(question, images, videos, None)
        stream = self.vlm.stream([*self.messages, message], fps=self.fps, **options)
        self.turns.append((message, stream))
        return stream

    def reset(self) -> None:
        """Forget all turns; the system message stays."""
        self.turns.clear()


def compose(question: str | Messages, images: Any, videos: Any, system: str | None) -> Messages:
    """Messages of one question, media before text, in which bytes stand for open files."""
    from qwen25vl.processing.given import list_videos
    from qwen25vl.processing.keeping import keep_open_files, keep_source

    images, videos = as_list(images), list_videos(videos)
    check_texts(question, system)
    if not isinstance(question, str):
        if images or videos or system is not None:
            raise UsageError(
                "a list of messages holds its own images, videos and system message; give only the list"
            )
        return list(keep_open_files(list_messages(question)))
    content = [{"type": "image", "image": keep_source(image)} for image in images]
    content += [{"type": "video", "video": keep_source(video)} for video in videos]
    messages: Messages = [] if system is None else [{"role": "system", "content": system}]
    return [*messages, {"role": "user", "content": [*content, {"type": "text", "text": question}]}]


def list_messages(messages: Any) -> Messages:
    """Messages of any iterator or row of objects as a list, so that they can be read twice."""
    from qwen25vl.processing.clients import plain_list

    listed = plain_list(messages)
    if isinstance(listed, Iterator | tuple):
        return list(listed)
    if not isinstance(listed, list):
        wanted = "a text (str) or a list of messages"
        raise UsageError(f"the question is {type(messages).__name__}; expected {wanted}")
    return listed


def check_texts(question: Any, system: Any) -> None:
    """Refuse bytes and whatever else is no text, where a picture may have been given in the place
    of one."""
    is_file = isinstance(question, bytes | bytearray) or callable(getattr(question, "read", None))
    if is_file or isinstance(question, Mapping) or not hasattr(question, "__iter__"):
        wanted = "a text (str) or a list of messages; pictures go into images="
        raise UsageError(f"the question is {type(question).__name__}; expected {wanted}")
    if system is not None and not isinstance(system, str):
        raise UsageError(f"system is {type(system).__name__}; expected a text (str)")


def find_sources(messages: Messages) -> tuple[Any, ...]:
    """The pictures and videos of a conversation as they were given, in the order of the prompt."""
    from qwen25vl.processing.messages import read_messages

    return tuple(
        part.source
        for message in read_messages(messages)
        for part in message.parts
        if part.kind != "text"
    )


def as_list(sources: Any) -> list[Any]:
    """No source, one, or a list or tuple of them, as a list."""
    if sources is None:
        return []
    return list(sources) if isinstance(sources, list | tuple) else [sources]
