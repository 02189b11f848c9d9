"""The pipeline's call: conversations or rendered prompts in, records out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar, Unpack, cast

from qwen25vl.arguments import refuse_unknown
from qwen25vl.ecosystem.chat_slots import fill_conversation, fill_conversations
from qwen25vl.ecosystem.pipeline_options import (
    PipelineCall,
    PipelineOptions,
    call_options,
    read_call,
)
from qwen25vl.ecosystem.pipeline_records import IdsAndText, Record, records
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

TASK = "image-text-to-text"
MAX_NEW_TOKENS = 256  # the ecosystem's default for this pipeline


class ImageTextToTextPipeline:
    """Call it with conversations, or with rendered prompts and pictures."""

    task: ClassVar[str] = TASK

    def __init__(
        self,
        model: Qwen2_5_VLForConditionalGeneration,
        processor: Qwen2_5_VLProcessor,
        *,
        tokenizer: Any = None,
        image_processor: Any = None,
        framework: str | None = None,
        device: int | str | torch.device | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        **options: Any,
    ) -> None:
        """A pipeline of a loaded model. tokenizer, image_processor: instead of the processor's own.
        device: where the model is moved. dtype (or torch_dtype): must be the model's. options: of
        the call, for all calls that do not give them. Raises OptionError for an unknown one.
        """
        from qwen25vl.ecosystem.pipeline_parts import check_dtype, place, with_parts
        from qwen25vl.load_options import check_options

        check_options({"framework": framework}, ImageTextToTextPipeline)
        check_dtype(model, dtype if dtype is not None else torch_dtype)
        refuse_unknown(options, call_options())
        self.model = model if device is None else place(model, device)
        self.processor = with_parts(processor, tokenizer, image_processor)
        self.options = options

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
        **options: Unpack[PipelineOptions],
    ) -> Any:
        """Answer conversations, or continue prompts.

        text: a conversation (list of messages), a list of conversations, a prompt or a list of
        prompts. images: the pictures of prompts, whose text has the slots for them, or those of a
        conversation's parts {"type": "image"} that have none. A conversation gives [record], a
        list of conversations gives [[record], …], with {"input_text", "generated_text"} in each
        record; with return_tensors "generated_token_ids" replaces "generated_text".
        return_full_text: False returns only what is new; otherwise a conversation is returned with
        the answer as its last message, a prompt with its continuation. The only argument may also
        be {"images": …, "text": …} or a list of these, or an iterator or dataset of any of these
        inputs, which gives an iterator of answers.

        continue_final_message: continue the last message; the default is to do so if it is the
        assistant's. add_generation_prompt: its opposite. generate_kwargs: options of
        GenerationConfig, which may also be given directly. min_pixels, max_pixels: of every picture
        and frame. processor_kwargs: further options of the processor. batch_size: the most
        conversations that are answered together. clean_up_tokenization_spaces has no effect on
        byte-level tokens. timeout: ignored, every download has a limit of its own.
        """
        call = read_call(self.options, options)
        if not self.length_is_given(call.generation):
            call = replace(call, generation={**call.generation, "max_new_tokens": MAX_NEW_TOKENS})
        if text is None:
            images, text = None, images
        if is_chat(text) and isinstance(text[0], Mapping) and "text" in text[0]:
            return [self.respond(None, pair, call) for pair in text]
        if is_iterable(text):
            return (self.respond(None, item, call) for item in text)
        return self.respond(images, text, call)

    def length_is_given(self, options: Mapping[str, Any]) -> bool:
        """Whether the call or the model's generation config says how long an answer may be."""
        if options.keys() & {"max_new_tokens", "max_length", "generation_config"}:
            return True
        return (
            self.model.resolve_generation(None, {}).max_new_tokens
            != GenerationConfig.max_new_tokens
        )

    @named_out_of_memory()
    def respond(self, images: Any, text: Any, call: PipelineCall) -> list[Any]:
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
        if isinstance(text[0], list | tuple):
            chats = text if images is None else fill_conversations(text, images)
            return self.answer_conversations(chats, call)
        chat = text if images is None else fill_conversation(text, images)
        return self.answer_conversations([chat], call)[0]

    def answer_conversations(
        self, conversations: Sequence[Messages], call: PipelineCall
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
                **call.processing,
            )
            for chat, written in zip(chats, self.write(inputs, len(chats), call), strict=True):
                results.append(records(chat, written, call.form, continues))
        return results

    def continue_prompts(self, images: Any, text: Any, call: PipelineCall) -> list[Any]:
        """The records of rendered prompts: of each prompt, or of all together where there is one
        prompt or where pictures come with them."""
        prompts = [text] if isinstance(text, str) else text
        if not are_prompts(prompts):
            raise UsageError(
                "the text is empty; give a conversation, a prompt, or a list of either"
            )
        inputs = self.processor(
            text=prompts, images=images, patch_dtype=self.model.dtype, **call.processing
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
        self, inputs: ModelInputs, num_prompts: int, call: PipelineCall
    ) -> list[list[IdsAndText]]:
        """What was written for each prompt, one or several times."""
        tokenizer = self.processor.tokenizer
        plain = {"return_dict_in_generate": False, "output_scores": False, "output_logits": False}
        options = {**call.generation, **plain}
        sequences = cast(
            "torch.Tensor", self.model.generate(**inputs, tokenizer=tokenizer, **options)
        )
        new = sequences[:, inputs.input_ids.shape[1] :]
        texts = self.processor.batch_decode(new, skip_special_tokens=call.skip_special_tokens)
        written = list(zip(sequences, texts, strict=True))
        each = len(written) // num_prompts
        return [written[start : start + each] for start in range(0, len(written), each)]


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
    conversations: Sequence[Messages], call: PipelineCall
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
