"""The short way for people: load a model, ask about pictures and videos, get an answer.

vlm = qwen25vl.load("Qwen/Qwen2.5-VL-3B-Instruct", quantize="int4")
answer = vlm.ask("Find every cup. Answer in JSON.", images=["table.jpg"])
print(answer, answer.boxes, answer.usage)
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from qwen25vl.answer import Answer, AnswerStream, Stopwatch
from qwen25vl.arguments import names_unknown_options, refuse_unknown
from qwen25vl.conversation import Conversation
from qwen25vl.demo import FOLDER as DEMO_FOLDER
from qwen25vl.demo import folder_on_disk
from qwen25vl.errors import named_out_of_memory
from qwen25vl.hub import resolve_folder
from qwen25vl.progress import Progress
from qwen25vl.question import GenerationOptions, Messages, compose, find_sources

if TYPE_CHECKING:
    import torch

    from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
    from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
    from qwen25vl.engine.constraint import StartConstraint
    from qwen25vl.engine.prefix import PrefixCache
    from qwen25vl.engine.visual_cache import VisualCache
    from qwen25vl.model.attention import Implementation
    from qwen25vl.structured.compiler import GrammarCompiler

PREFIX_CACHE_BYTES = 512 * 2**20
VISUAL_CACHE_BYTES = 256 * 2**20
QUESTION_OPTIONS = (
    "images", "videos", "pages", "system", "fps", "min_pixels", "max_pixels",
    "continue_final_message", "adapter", "schema",
)  # fmt: skip


def load(
    name_or_folder: str | Path | None = None,
    *,
    dtype: torch.dtype | str = "auto",
    quantize: str | None = None,
    device: torch.device | str | None = None,
    attn_implementation: Implementation = "sdpa",
    adapter: str | Path | Mapping[str, str | Path] | None = None,
    processor: str | Path | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    max_decoded_pixels: int | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    progress: Progress | None = None,
    visual_cache_bytes: int = VISUAL_CACHE_BYTES,
    prefix_cache_bytes: int | None = None,
    **options: Any,
) -> VisionLanguageModel:
    """Load a checkpoint folder or a hub name; without one, the small demo model that comes with the
    package.

    quantize: "int8" or "int4"; with "+vision" appended, the vision encoder's blocks too, to 8 bits.
    adapter: a LoRA adapter in PEFT's layout, or several by name, of which the first answers unless
    a question names another. An adapter may also stand in the place of the model; its base is then
    looked for. processor: a folder or hub name with tokenizer, chat template and settings for
    pictures, where the model has none or others are wanted.
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
    from qwen25vl.engine.prefix import PrefixCache
    from qwen25vl.engine.visual_cache import VisualCache
    from qwen25vl.load_options import check_options

    check_options(options, load)
    cache = VisualCache(visual_cache_bytes)
    PrefixCache(prefix_cache_bytes or 0)  # refuses a wrong number before the model is loaded
    source = folder_on_disk(DEMO_FOLDER) if name_or_folder is None else name_or_folder
    hub: dict[str, Any] = {"cache_dir": cache_dir, "token": token}
    hub |= {"local_files_only": local_files_only}
    sizes: dict[str, Any] = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    sizes |= {"max_decoded_pixels": max_decoded_pixels}
    how: dict[str, Any] = {"dtype": dtype, "device_map": device, "progress": progress}
    how |= {"quantization_config": quantize, "attn_implementation": attn_implementation}
    folder = resolve_folder(source, revision=revision, **hub)
    model, parts = load_parts(folder, adapter, processor or folder, hub, sizes, how)
    prefixes = open_prefix_cache(model, prefix_cache_bytes)
    return VisionLanguageModel(model, parts, progress, cache, prefixes)


def load_parts(
    folder: Path,
    adapter: str | Path | Mapping[str, str | Path] | None,
    processor: str | Path,
    hub: dict[str, Any],
    sizes: dict[str, Any],
    how: dict[str, Any],
) -> tuple[Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLProcessor]:
    """A model with its adapters, and a processor; what is small is read first, so that mistakes
    are found before the weights are."""
    from qwen25vl.ecosystem.auto import load_model
    from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
    from qwen25vl.ecosystem.processor_loading import check_fit
    from qwen25vl.loading.adapter_base import find_adapters, load_adapters

    adapters = find_adapters(adapter, hub)
    parts = Qwen2_5_VLProcessor.from_pretrained(processor, **sizes, **hub)
    model: Qwen2_5_VLForConditionalGeneration = load_model(folder, **how, **hub)
    check_fit(parts, model.config)
    load_adapters(model, adapters)
    return model, parts


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
    question. grammars: what compiles schemas, once there was one."""

    model: Qwen2_5_VLForConditionalGeneration
    processor: Qwen2_5_VLProcessor
    progress: Progress | None = None
    visual_cache: VisualCache | None = None
    prefix_cache: PrefixCache | None = None
    grammars: GrammarCompiler | None = field(default=None, repr=False, compare=False)

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
        pages: Any = None,
        system: str | None = None,
        fps: float | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        continue_final_message: bool | None = None,
        adapter: str | None = None,
        schema: Any = None,
        **options: Unpack[GenerationOptions],
    ) -> Answer:
        """Ask, and wait for the whole answer.

        question: a text, which is put after the images and videos, or a list of messages that holds
        everything. images, videos: one source or a list of them (path, URL, bytes, open file, PIL,
        numpy, torch); a list of still pictures in videos is the frames of one video. Each page of a
        PDF document is a picture; pages: those that are wanted, as 3, "3-7" or [1, 4]. system:
        replaces the template's system message. fps: frames per second to take. min_pixels,
        max_pixels: for these images and videos. continue_final_message: continue the last message
        instead of starting an answer; the default is to do so if it is the assistant's (the
        answer's text is only what was added). adapter: the name of the adapter that answers;
        "__base__" for none, None for the one in force (at first the first). schema: what the answer
        follows, a JSON schema (a mapping or JSON text), a class of pydantic, or a
        `structured.constraints.Constraint`; then `answer.parsed` has the value. options: see
        GenerationConfig; an unknown one raises OptionError.
        """
        own: dict[str, Any] = {"system": system, "fps": fps, "min_pixels": min_pixels}
        own |= {"max_pixels": max_pixels, "continue_final_message": continue_final_message}
        own |= {"pages": pages, "adapter": adapter, "schema": schema}
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
        pages: Any = None,
        system: str | None = None,
        fps: float | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        continue_final_message: bool | None = None,
        adapter: str | None = None,
        schema: Any = None,
        **options: Unpack[GenerationOptions],
    ) -> AnswerStream:
        """Ask, and get the answer chunk by chunk: `for chunk in …: print(chunk.text, end="")`, then
        `.answer`."""
        from qwen25vl.processing.messages import ends_with_answer

        refuse_unknown(options, (*GenerationOptions.__annotations__, *QUESTION_OPTIONS))
        watch = Stopwatch(self.progress)
        constraint = None if schema is None else start_of(self, schema)
        messages = compose(question, images, videos, system, pages)
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
        if self.visual_cache is not None:
            sizes["known_media"] = self.visual_cache.digests()
        inputs = self.processor.apply_chat_template(messages, **sizes)
        watch.lap("preprocess")
        cache = self.visual_cache
        chunks = self.model.stream(
            inputs,
            self.processor.tokenizer,
            progress=watch.report,
            visual_cache=cache,
            prefix_cache=self.prefix_cache,
            adapter_names=adapter,
            constraint=constraint,
            **options,
        )
        num_tokens = int(inputs.attention_mask.sum())
        return AnswerStream(
            chunks, self.processor.tokenizer, watch, num_tokens, inputs.media, sources, schema
        )

    @names_unknown_options
    def chat(
        self, system: str | None = None, *, fps: float | None = None, adapter: str | None = None
    ) -> Conversation:
        """Start a conversation; fps as in `ask`, for all its videos; adapter as in `ask`, until
        another is assigned."""
        return Conversation(self, system, fps, adapter)


def start_of(vlm: VisionLanguageModel, schema: Any) -> StartConstraint:
    """Compile what an answer of a model is to follow."""
    from qwen25vl.structured.compiler import GrammarCompiler
    from qwen25vl.structured.constraints import Constraint

    constraint = schema if isinstance(schema, Constraint) else Constraint.of_schema(schema)
    if vlm.grammars is None:
        vlm.grammars = GrammarCompiler(vlm.processor.tokenizer)
    return vlm.grammars.compile(constraint).start
