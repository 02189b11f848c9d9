"""The ecosystem's pipeline: the same calls and the same answers as
`transformers.pipeline("image-text-to-text")`."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Unpack, cast

from qwen25vl.arguments import refuse_unknown
from qwen25vl.demo import FOLDER as DEMO_FOLDER
from qwen25vl.demo import folder_on_disk
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import MessageError, UsageError, named_out_of_memory
from qwen25vl.processing.clients import present
from qwen25vl.processing.messages import ends_with_answer

if TYPE_CHECKING:
    import torch

    from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
    from qwen25vl.inputs import ModelInputs
    from qwen25vl.loading.quantization import TorchAoConfig
    from qwen25vl.model.attention import Implementation
    from qwen25vl.processing.processor import Qwen2_5_VLProcessor
    from qwen25vl.question import GenerationOptions

TASK = "image-text-to-text"
MAX_NEW_TOKENS = 256  # the ecosystem's default for this pipeline

Messages = Sequence[Mapping[str, Any]]
Record = dict[str, Any]
Written = tuple["torch.Tensor", str]
Form = Literal["ids", "new", "full"]


def pipeline(
    task: str = TASK,
    model: str | Path | Qwen2_5_VLForConditionalGeneration | None = None,
    processor: str | Path | Qwen2_5_VLProcessor | None = None,
    *,
    device: int | str | torch.device | None = None,
    device_map: str | torch.device | dict[str, str] | None = None,
    dtype: torch.dtype | str = "auto",
    torch_dtype: torch.dtype | str | None = None,
    attn_implementation: Implementation = "sdpa",
    quantization_config: TorchAoConfig | str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    use_fast: bool | None = None,
    **options: Any,
) -> ImageTextToTextPipeline:
    """Load a model and its processor for one task.

    model: a folder, a hub name or a loaded model (then a processor must come with it); without one,
    the built-in demo model. device: torch's name of it, a CUDA device's number, or −1 for the CPU;
    device_map and the rest as in `AutoModelForImageTextToText.from_pretrained`. Raises UsageError
    for another task or a meaningless combination, OptionError for an unknown option.
    """
    from qwen25vl.load_options import check_options

    check_options(options, pipeline)
    if task != TASK:
        raise UsageError(f"there is no pipeline {task!r}; only {TASK!r} is supported")
    if device is not None and device_map is not None:
        raise UsageError("give either device or device_map")
    source = folder_on_disk(DEMO_FOLDER) if model is None else model
    hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
    hub["local_files_only"] = local_files_only
    if processor is None:
        if not isinstance(source, str | Path):
            raise UsageError("a loaded model needs its processor: pipeline(task, model, processor)")
        processor = source
    if isinstance(processor, str | Path):
        from qwen25vl.processing.processor import Qwen2_5_VLProcessor

        processor = Qwen2_5_VLProcessor.from_pretrained(processor, use_fast=use_fast, **hub)
    if isinstance(source, str | Path):
        from qwen25vl.ecosystem.auto import load_model

        hub |= {
            "attn_implementation": attn_implementation,
            "quantization_config": quantization_config,
        }
        where = device_map if device is None else read_device(device)
        source = load_model(source, dtype=dtype, torch_dtype=torch_dtype, device_map=where, **hub)
    return ImageTextToTextPipeline(source, processor)


def read_device(device: int | str | torch.device) -> str | torch.device:
    """A number is a CUDA device, as in the ecosystem; without CUDA it is the CPU, which is said."""
    import torch

    if not isinstance(device, int):
        return device
    if device >= 0 and not torch.cuda.is_available():
        print(
            f"qwen25vl: device={device} is a CUDA device and there is none; the CPU is used",
            file=sys.stderr,
        )
    return f"cuda:{device}" if device >= 0 and torch.cuda.is_available() else "cpu"


@dataclass(eq=False)
class ImageTextToTextPipeline:
    """Call it with conversations, or with rendered prompts and pictures."""

    model: Qwen2_5_VLForConditionalGeneration
    processor: Qwen2_5_VLProcessor
    task: ClassVar[str] = TASK

    def __repr__(self) -> str:
        kind = str(self.model.dtype).removeprefix("torch.")
        return f"ImageTextToTextPipeline({self.processor}, {kind} on {self.model.device})"

    @property
    def tokenizer(self) -> Any:
        return self.processor.tokenizer

    @property
    def device(self) -> torch.device:
        return self.model.device

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        *,
        generate_kwargs: Mapping[str, Any] | None = None,
        return_full_text: bool | None = None,
        return_tensors: bool | None = None,
        continue_final_message: bool | None = None,
        stop_sequence: str | Sequence[str] | None = None,
        skip_special_tokens: bool = True,
        video_fps: float | None = None,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        batch_size: int = 1,
        **written: Unpack[GenerationOptions],
    ) -> Any:
        """Answer conversations, or continue prompts.

        text: a conversation (list of messages), a list of conversations, a prompt or a list of
        prompts. images: the pictures of prompts, whose text has the slots for them; a conversation
        holds its own. A conversation gives [record], a list of conversations gives [[record], …],
        with {"input_text", "generated_text"} in each record; with return_tensors
        "generated_token_ids" replaces "generated_text". return_full_text: False returns only what
        is new; otherwise a conversation is returned with the answer as its last message, a prompt
        with its continuation. The only argument may also be {"images": …, "text": …} or a list of
        these, or an iterator or dataset of any of these inputs, which gives an iterator of answers.

        continue_final_message: continue the last message; the default is to do so if it is the
        assistant's. generate_kwargs: options of GenerationConfig, which may also be given directly.
        min_pixels, max_pixels: of every picture and frame. batch_size: the most conversations that
        are answered together.
        """
        refuse_unknown(written, call_options())
        if return_full_text is not None and return_tensors is not None:
            raise UsageError("return_full_text and return_tensors exclude each other")
        form: Form = "ids" if return_tensors else "new" if return_full_text is False else "full"
        options = join_options(generate_kwargs, {**written, "stop_strings": stop_sequence})
        if not self.length_is_given(options):
            options["max_new_tokens"] = MAX_NEW_TOKENS
        options["skip_special_tokens"] = skip_special_tokens
        sizes = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        given = form, continue_final_message, batch_size, video_fps, sizes, options
        if text is None:
            images, text = None, images
        if is_chat(text) and isinstance(text[0], Mapping) and "text" in text[0]:
            return [self.respond(None, pair, *given) for pair in text]
        if is_stream(text):
            return (self.respond(None, item, *given) for item in text)
        return self.respond(images, text, *given)

    def length_is_given(self, options: Mapping[str, Any]) -> bool:
        """Whether the call or the model's generation config says how long an answer may be."""
        if options.keys() & {"max_new_tokens", "generation_config"}:
            return True
        return (
            self.model.resolve_generation(None, {}).max_new_tokens
            != GenerationConfig.max_new_tokens
        )

    @named_out_of_memory()
    def respond(
        self, images: Any, text: Any, form: Form, continue_final_message: bool | None, batch_size: int,
        video_fps: float | None, sizes: dict[str, Any], options: dict[str, Any],
    ) -> list[Any]:  # fmt: skip
        """The answer to whatever `text` is, if it is not several of them."""
        if isinstance(text, Mapping):
            if images is not None or text.keys() - {"images", "text"}:
                got = ", ".join(map(str, text))
                raise UsageError(
                    f'a mapping must hold only "images" and "text" and be the only input; got {got}'
                )
            images, text = text.get("images"), text.get("text")
        if is_chat(text):
            if images is not None:
                raise UsageError(
                    "a conversation holds its own pictures; do not give images as well"
                )
            is_one = not isinstance(text[0], list | tuple)
            ready = {"tokenize": True, "return_dict": True, "video_fps": video_fps, **sizes}
            ready["patch_dtype"] = self.model.dtype
            results: list[list[Record]] = []
            for continues, chats in batches(
                [text] if is_one else text, continue_final_message, batch_size
            ):
                inputs = self.processor.apply_chat_template(
                    chats,
                    add_generation_prompt=not continues,
                    continue_final_message=continues,
                    **ready,
                )
                answers = self.write(inputs, len(chats), **options)
                results += [
                    records(*pair, form, continues) for pair in zip(chats, answers, strict=True)
                ]
            return results[0] if is_one else results

        prompts = [text] if isinstance(text, str) else text
        if (
            not isinstance(prompts, list | tuple)
            or not prompts
            or not all(isinstance(p, str) and p for p in prompts)
        ):
            raise UsageError(
                "the text is empty; give a conversation, a prompt, or a list of either"
            )
        ready = {"padding": True, "return_tensors": "pt", "patch_dtype": self.model.dtype, **sizes}
        inputs = self.processor(text=prompts, images=images, **ready)
        answers = self.write(inputs, len(prompts), **options)
        results = [records(*pair, form) for pair in zip(prompts, answers, strict=True)]
        return (
            results
            if images is None and not isinstance(text, str)
            else [one for each in results for one in each]
        )

    def write(
        self, inputs: ModelInputs, num_prompts: int, *, skip_special_tokens: bool, **options: Any
    ) -> list[list[Written]]:
        """What was written for each prompt, one or several times: (ids of prompt and answer, the
        answer's text)."""
        ids = self.model.generate(**inputs, tokenizer=self.processor.tokenizer, **options)
        sequences = cast("torch.Tensor", ids)  # return_dict_in_generate was refused
        new = sequences[:, inputs.input_ids.shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=skip_special_tokens)
        written = list(zip(sequences, texts, strict=True))
        each = len(written) // num_prompts
        return [written[start : start + each] for start in range(0, len(written), each)]


def call_options() -> list[str]:
    """What the pipeline's call takes by name."""
    from qwen25vl.engine.option_values import FIXED
    from qwen25vl.engine.options import GenerationConfig

    own = inspect.signature(ImageTextToTextPipeline.__call__).parameters
    return [*own, *(field.name for field in fields(GenerationConfig)), *FIXED]


def is_stream(value: Any) -> bool:
    """Whether a value is an iterator, or a dataset: a sequence of a kind of its own that is no
    array."""
    is_plain = isinstance(value, str | list | tuple | Mapping) or hasattr(value, "dtype")
    return isinstance(value, Iterator) or (hasattr(value, "__getitem__") and not is_plain)


def is_chat(value: Any) -> bool:
    """Whether a value is a conversation or a list of conversations, and no prompt."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return isinstance(value[0], list | tuple) or present(value[0]) is not None


def batches(
    chats: Sequence[Messages], continue_final_message: bool | None, batch_size: int
) -> Iterator[tuple[bool, list[Messages]]]:
    """Runs of at most `batch_size` conversations that are continued alike."""
    if batch_size < 1:
        raise UsageError(f"batch_size is {batch_size}; it must be at least 1")

    def continues(chat: Messages) -> bool:
        if not chat:
            raise MessageError("a conversation has no messages")
        return ends_with_answer(chat) if continue_final_message is None else continue_final_message

    for key, run in groupby(chats, continues):
        alike = list(run)
        for start in range(0, len(alike), batch_size):
            yield key, alike[start : start + batch_size]


def join_options(
    generate_kwargs: Mapping[str, Any] | None, beside: Mapping[str, Any]
) -> dict[str, Any]:
    """All generation options in one place; none may be given twice."""
    beside = {name: value for name, value in beside.items() if value is not None}
    if twice := sorted(beside.keys() & (generate_kwargs or {}).keys()):
        raise UsageError(f"{', '.join(twice)}: given twice, in generate_kwargs and as an argument")
    options = {**(generate_kwargs or {}), **beside}
    if options.get("return_dict_in_generate"):
        raise UsageError("a pipeline does not support return_dict_in_generate; call model.generate")
    return options


def records(
    prompt: Any, written: Sequence[Written], form: Form, continues: bool = False
) -> list[Record]:
    """The ecosystem's answer to one prompt."""
    if form == "ids":
        return [{"input_text": prompt, "generated_token_ids": ids} for ids, _ in written]
    texts = [text if form == "new" else append(prompt, text, continues) for _, text in written]
    return [{"input_text": prompt, "generated_text": text} for text in texts]


def append(prompt: Any, text: str, continues: bool) -> Any:
    """A prompt with its continuation; a conversation with a new last message, or with its last
    message continued."""
    if isinstance(prompt, str):
        return prompt + text
    if not continues:
        return [*prompt, {"role": "assistant", "content": text}]
    last = present(prompt[-1]) or {}
    content = last.get("content", "")
    if isinstance(content, str):
        grown: Any = content + text
    elif isinstance(content[-1], str):
        grown = [*content[:-1], content[-1] + text]
    else:
        part = present(content[-1]) or {}
        grown = [*content[:-1], {**part, "text": part["text"] + text}]
    return [*prompt[:-1], {**last, "content": grown}]
