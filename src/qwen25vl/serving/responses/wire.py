"""The bodies of /v1/responses and /v1/responses/input_tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from qwen25vl.serving.wire import SamplingFields, Text, Wire

Id = Annotated[str, Field(min_length=1, max_length=128)]
Metadata = dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]]


class TextConfig(Wire):
    """format: what the text must be; verbosity has no meaning here."""

    format: dict[str, Any] | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


class ResponsesRequest(SamplingFields):
    """POST /v1/responses, with the same fields of peers as the route for chats."""

    input: Text | Annotated[list[dict[str, Any]], Field(max_length=4096)] | None = None
    instructions: Text | None = None
    max_output_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    include: Annotated[list[str], Field(max_length=32)] | None = None
    text: TextConfig | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    metadata: Annotated[Metadata, Field(max_length=16)] | None = None
    store: bool | None = None
    previous_response_id: Id | None = None
    truncation: Literal["auto", "disabled"] | None = None
    background: bool | None = None
    conversation: str | dict[str, Any] | None = None
    prompt: dict[str, Any] | None = None
    reasoning: dict[str, Any] | None = None
    max_tool_calls: int | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None

    @property
    def shows_logprobs(self) -> bool:
        asked = "message.output_text.logprobs" in (self.include or ())
        return asked or bool(self.top_logprobs)

    @property
    def is_stored(self) -> bool:
        return self.store is not False
