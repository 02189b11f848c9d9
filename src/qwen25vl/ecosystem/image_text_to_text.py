"""The pipeline's call: conversations or rendered prompts in, records out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, cast

from qwen25vl.arguments import refuse_unknown
from qwen25vl.ecosystem.pipeline_records import Form, Record, Written, records
from qwen25vl.engine.option_values import FIXED
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import MessageError, UsageError, named_out_of_memory
from qwen25vl.processing.clients import present
from qwen25vl.processing.messages import ends_with_answer

if TYPE_CHECKING:
    import torch

    from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
    from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
    from qwen25vl.inputs import ModelInputs
    from qwen25vl.processing.conversations import Messages
    from qwen25vl.question import GenerationOptions

TASK = "image-text-to-text"
MAX_NEW_TOKENS = 256  # the ecosystem's default for this pipeline


@dataclass(frozen=True)
class CallOptions:
    """What one call of the pipeline asks for, whatever its inputs are.

    sizes: min_pixels and max_pixels. generation: options of `generate`.
    """

    form: Form
    continue_final_message: bool | None
    batch_size: int
    video_fps: float | None
    sizes: Mapping[str, Any]
    skip_special_tokens: bool
    generation: Mapping[str, Any]


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
        options = join_options(generate_kwargs, {**written, "stop_strings": stop_sequence})
        if not self.length_is_given(options):
            options["max_new_tokens"] = MAX_NEW_TOKENS
        call = CallOptions(
            form=choose_form(return_full_text, return_tensors),
            continue_final_message=continue_final_message,
            batch_size=batch_size,
            video_fps=video_fps,
            sizes={"min_pixels": min_pixels, "max_pixels": max_pixels},
            skip_special_tokens=skip_special_tokens,
            generation=options,
        )
        if text is None:
            images, text = None, images
        if is_chat(text) and isinstance(text[0], Mapping) and "text" in text[0]:
            return [self.respond(None, pair, call) for pair in text]
        if is_iterable(text):
            return (self.respond(None, item, call) for item in text)
        return self.respond(images, text, call)

    def length_is_given(self, options: Mapping[str, Any]) -> bool:
        """Whether the call or the model's generation config says how long an answer may be."""
        if options.keys() & {"max_new_tokens", "generation_config"}:
            return True
        return (
            self.model.resolve_generation(None, {}).max_new_tokens
            != GenerationConfig.max_new_tokens
        )

    @named_out_of_memory()
    def respond(self, images: Any, text: Any, call: CallOptions) -> list[Any]:
        """The answer to whatever `text` is, if it is not several of them."""
        if isinstance(text, Mapping):
            if images is not None or text.keys() - {"images", "text"}:
                got = ", ".join(map(str, text))
                raise UsageError(
                    f'a mapping must hold only "images" and "text" and be the only input; got {got}'
                )
            images, text = text.get("images"), text.get("text")
        if not is_chat(text):
            return self.continue_prompts(images, text, call)
        if images is not None:
            raise UsageError("a conversation holds its own pictures; do not give images as well")
        if isinstance(text[0], list | tuple):
            return self.answer_conversations(text, call)
        return self.answer_conversations([text], call)[0]

    def answer_conversations(
        self, conversations: Sequence[Messages], call: CallOptions
    ) -> list[list[Record]]:
        """The records of each conversation; `batch_size` of them are answered together."""
        results: list[list[Record]] = []
        for continues, chats in batches(conversations, call):
            inputs = self.processor.apply_chat_template(
                chats,
                add_generation_prompt=not continues,
                continue_final_message=continues,
                tokenize=True,
                return_dict=True,
                video_fps=call.video_fps,
                patch_dtype=self.model.dtype,
                **call.sizes,
            )
            for chat, written in zip(chats, self.write(inputs, len(chats), call), strict=True):
                results.append(records(chat, written, call.form, continues))
        return results

    def continue_prompts(self, images: Any, text: Any, call: CallOptions) -> list[Any]:
        """The records of rendered prompts: of each prompt, or of all together where there is one
        prompt or where pictures come with them."""
        prompts = [text] if isinstance(text, str) else text
        if not are_prompts(prompts):
            raise UsageError(
                "the text is empty; give a conversation, a prompt, or a list of either"
            )
        inputs = self.processor(
            text=prompts, images=images, patch_dtype=self.model.dtype, **call.sizes
        )
        answers = self.write(inputs, len(prompts), call)
        results = [
            records(prompt, written, call.form)
            for prompt, written in zip(prompts, answers, strict=True)
        ]
        if images is None and not isinstance(text, str):
            return results
        return [record for each in results for record in each]

    def write(
        self, inputs: ModelInputs, num_prompts: int, call: CallOptions
    ) -> list[list[Written]]:
        """What was written for each prompt, one or several times."""
        tokenizer = self.processor.tokenizer
        ids = self.model.generate(**inputs, tokenizer=tokenizer, **call.generation)
        sequences = cast("torch.Tensor", ids)  # return_dict_in_generate was refused
        new = sequences[:, inputs.input_ids.shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=call.skip_special_tokens)
        written = list(zip(sequences, texts, strict=True))
        each = len(written) // num_prompts
        return [written[start : start + each] for start in range(0, len(written), each)]


def choose_form(return_full_text: bool | None, return_tensors: bool | None) -> Form:
    if return_full_text is not None and return_tensors is not None:
        raise UsageError("return_full_text and return_tensors exclude each other")
    if return_tensors:
        return "ids"
    return "new" if return_full_text is False else "full"


def call_options() -> list[str]:
    """What the pipeline's call takes by name."""
    own = inspect.signature(ImageTextToTextPipeline.__call__).parameters
    return [*own, *(field.name for field in fields(GenerationConfig)), *FIXED]


def is_iterable(value: Any) -> bool:
    """Whether a value is an iterator, or a dataset:
    a sequence of a kind of its own that is no array."""
    is_plain = isinstance(value, str | list | tuple | Mapping) or hasattr(value, "dtype")
    return isinstance(value, Iterator) or (hasattr(value, "__getitem__") and not is_plain)


def is_chat(value: Any) -> bool:
    """Whether a value is a conversation or a list of conversations, and no prompt."""
    if not isinstance(value, list | tuple) or not value:
        return False
    return isinstance(value[0], list | tuple) or present(value[0]) is not None


def are_prompts(values: Any) -> bool:
    """Whether a value is a list of texts, none of them empty."""
    if not isinstance(values, list | tuple) or not values:
        return False
    return all(isinstance(value, str) and value for value in values)


def batches(
    conversations: Sequence[Messages], call: CallOptions
) -> Iterator[tuple[bool, list[Messages]]]:
    """Runs of at most `batch_size` conversations that are continued alike, each with whether their
    last message is continued."""
    if call.batch_size < 1:
        raise UsageError(f"batch_size is {call.batch_size}; it must be at least 1")

    def continues(chat: Messages) -> bool:
        if not chat:
            raise MessageError("a conversation has no messages")
        if call.continue_final_message is None:
            return ends_with_answer(chat)
        return call.continue_final_message

    for is_continued, run in groupby(conversations, continues):
        alike = list(run)
        for start in range(0, len(alike), call.batch_size):
            yield is_continued, alike[start : start + call.batch_size]


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
