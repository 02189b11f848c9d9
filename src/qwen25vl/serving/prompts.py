"""From the messages of a request to the inputs of the model.

The media room fetches and decodes, in processes of its own; rendering and tokenising run in a
thread. Nothing here waits for the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from qwen25vl.errors import UsageError
from qwen25vl.processing.collate import Padding, Prompt, collate
from qwen25vl.processing.conversations import render_conversations
from qwen25vl.processing.messages import ends_with_answer
from qwen25vl.processing.template_language import compile_template
from qwen25vl.serving.errors import of_error
from qwen25vl.serving.tasks import in_order
from qwen25vl.serving.wire import ChatRequest

if TYPE_CHECKING:
    from qwen25vl.inputs import ModelInputs
    from qwen25vl.processing.conversations import RenderedConversations
    from qwen25vl.serving.service import Service

OWN = ("messages", "tools", "documents", "strftime_now", "add_generation_prompt")


async def read_chat(service: Service, request: ChatRequest) -> ModelInputs:
    """The inputs of a chat request. Raises ApiError and the package's errors."""
    media = service.media
    messages = await media.resolve(
        request.messages,
        mm_processor_kwargs=request.mm_processor_kwargs,
        media_io_kwargs=request.media_io_kwargs,
    )
    try:
        rendered = await service.in_thread(render, service, request, messages)
    except UsageError as error:
        raise of_error(error, "messages") from None
    prepared = await in_order([media.prepare(part) for part in rendered.media[0]])
    prompt = Prompt(rendered.pieces[0], prepared)
    tokenizer = service.vlm.processor.tokenizer
    return await service.in_thread(collate, [prompt], tokenizer, Padding(), False)


def render(
    service: Service, request: ChatRequest, messages: Sequence[Mapping[str, Any]]
) -> RenderedConversations:
    """Fill the checkpoint's template. A request may set the variables that it asks for, never the
    template itself."""
    processor = service.vlm.processor
    names = compile_template(processor.chat_template)[1]
    given = request.chat_template_kwargs or {}
    variables = {name: given[name] for name in given if name in names and name not in OWN}
    continues = request.continue_final_message
    if continues is None:
        continues = request.add_generation_prompt is None and ends_with_answer(messages)
    adds = not continues if request.add_generation_prompt is None else request.add_generation_prompt
    tools = request.tools if request.tool_choice != "none" else None
    return render_conversations(
        messages,
        processor.chat_template,
        processor.tokenizer,
        tools=tools or None,
        add_generation_prompt=adds,
        continue_final_message=continues,
        add_vision_id=bool(variables.pop("add_vision_id", False)),
        variables=variables,
    )


def read_text(service: Service, text: str) -> ModelInputs:
    """The inputs of a plain prompt, in which control tokens are control tokens."""
    tokenizer = service.vlm.processor.tokenizer
    return collate([Prompt([(text, True)], [])], tokenizer, Padding(), False)
