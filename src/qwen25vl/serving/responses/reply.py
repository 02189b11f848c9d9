"""A response as an object, while it is written and when it is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import TYPE_CHECKING, Any

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.responses.output import Output, copy_of

if TYPE_CHECKING:
    from qwen25vl.serving.generation import Generation
    from qwen25vl.serving.responses.wire import ResponsesRequest
    from qwen25vl.serving.service import Service

ERROR_CODES = (
    "server_error", "rate_limit_exceeded", "invalid_prompt", "invalid_image",
    "invalid_image_format", "invalid_base64_image", "invalid_image_url", "image_too_large",
    "image_too_small", "image_parse_error", "image_file_too_large", "empty_image_file",
    "unsupported_image_media_type", "failed_to_download_image", "image_file_not_found",
)  # fmt: skip


@dataclass
class Reply:
    """The parts of a response that no event changes."""

    service: Service
    body: ResponsesRequest
    id: str = field(default_factory=lambda: f"resp_{token_hex(24)}")
    created: int = field(default_factory=lambda: int(time.time()))

    def frame(self) -> dict[str, Any]:
        """Every field that the request decides."""
        body = self.body
        defaults = self.service.vlm.model.resolve_generation(None, {})
        temperature = body.temperature
        if temperature is None:
            temperature = defaults.temperature if defaults.do_sample else 0.0
        top_p = defaults.top_p if body.top_p is None else body.top_p
        text = body.text
        shown_text: dict[str, Any] = {"format": (text and text.format) or {"type": "text"}}
        if text is not None and text.verbosity is not None:
            shown_text["verbosity"] = text.verbosity
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "background": False,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "frequency_penalty": float(body.frequency_penalty or 0),
            "max_tool_calls": body.max_tool_calls,
            "metadata": body.metadata or {},
            "model": body.model or self.service.settings.model_names[0],
            "parallel_tool_calls": body.parallel_tool_calls is not False,
            "presence_penalty": float(body.presence_penalty or 0),
            "previous_response_id": body.previous_response_id,
            "prompt_cache_key": body.prompt_cache_key,
            "reasoning": None,
            "safety_identifier": body.safety_identifier,
            "service_tier": "default",
            "store": body.is_stored,
            "temperature": float(temperature),
            "text": shown_text,
            "tool_choice": body.tool_choice or "auto",
            "tools": [{"strict": None, "parameters": None, **tool} for tool in body.tools or ()],
            "top_logprobs": body.top_logprobs or 0,
            "top_p": float(1.0 if top_p is None else top_p),
            "truncation": body.truncation or "disabled",
            **({} if body.user is None else {"user": body.user}),
        }

    def started(self) -> dict[str, Any]:
        """Before anything is written."""
        return self.state("in_progress", ())

    def finished(self, output: Output, generation: Generation) -> dict[str, Any]:
        """Once the answer is over."""
        reason = output.end.reason if output.end is not None else "stop"
        reasons = {"length": "max_output_tokens", "content_filter": "content_filter"}
        details = {"reason": reasons[reason]} if reason in reasons else None
        status = "completed" if details is None else "incomplete"
        found = self.state(status, output.items, incomplete_details=details)
        return {**found, "usage": usage_of(generation), "timings": generation.timings()}

    def failed(self, error: ApiError, output: Output | None) -> dict[str, Any]:
        items = output.items if output is not None else ()
        return self.state("failed", items, error={"code": code_of(error), "message": error.message})

    def state(
        self,
        status: str,
        items: Sequence[dict[str, Any]],
        *,
        error: dict[str, Any] | None = None,
        incomplete_details: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        over = None if status == "in_progress" else int(time.time())
        return {
            **self.frame(),
            "status": status,
            "completed_at": over if status == "completed" else None,
            "error": error,
            "incomplete_details": incomplete_details,
            "output": [copy_of(item) for item in items],
            "usage": None,
        }


def code_of(error: ApiError) -> str:
    """The nearest of the codes that the API has."""
    if error.code in ERROR_CODES:
        return str(error.code)
    if error.status == 429:
        return "rate_limit_exceeded"
    return "server_error" if error.status >= 500 else "invalid_prompt"


def usage_of(generation: Generation) -> dict[str, Any]:
    counts = generation.usage()
    cached = counts["prompt_tokens_details"]["cached_tokens"]
    return {
        "input_tokens": counts["prompt_tokens"],
        "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
        "output_tokens": counts["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": counts["total_tokens"],
    }
