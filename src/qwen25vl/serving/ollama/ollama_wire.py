"""The requests of Ollama's API, and what they are in OpenAI's words.

Pictures are base64 beside a message's text. Options of loading a model (num_ctx, num_gpu, …) say
nothing here: it is loaded, and serves its whole context. `think` and `keep_alive` neither.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.following import as_chat
from qwen25vl.serving.sampling import refuse
from qwen25vl.serving.wire import ChatRequest, Text, Wire

if TYPE_CHECKING:
    from qwen25vl.serving.service import Service

LONGEST = 2**31  # for an answer that may take all room that there is
LATEST = ":latest"  # what Ollama adds to a name without a tag
SAME = ("temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty",
        "frequency_penalty", "typical_p", "mirostat")  # fmt: skip
Images = Annotated[list[str], Field(max_length=4096)]


class OllamaOptions(Wire):
    """Those that say how an answer is written."""

    num_predict: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    repeat_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    typical_p: float | None = None
    mirostat: int | None = None


class OllamaRequest(Wire):
    """stream: also where it is not given. format: "json", or a schema."""

    model: str
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: OllamaOptions | None = None
    keep_alive: float | str | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None


class OllamaMessage(Wire):
    role: str
    content: Text | None = None
    images: Images | None = None
    tool_calls: list[dict[str, Any]] | None = None
    tool_name: str | None = None
    tool_call_id: str | None = None


class OllamaChat(OllamaRequest):
    """POST /api/chat"""

    messages: Annotated[list[OllamaMessage], Field(max_length=4096)] | None = None
    tools: list[dict[str, Any]] | None = None


class OllamaGenerate(OllamaRequest):
    """POST /api/generate"""

    prompt: Text | None = None
    system: Text | None = None
    images: Images | None = None
    suffix: str | None = None
    template: str | None = None
    context: list[int] | None = None
    raw: bool | None = None


def chat_of(service: Service, body: OllamaChat) -> ChatRequest:
    messages = [as_message(message) for message in body.messages or ()]
    return as_chat({**fields_of(service, body), "messages": messages, "tools": body.tools})


def generate_of(service: Service, body: OllamaGenerate) -> ChatRequest:
    """A question and the system's text as a conversation."""
    for name in ("suffix", "template", "context", "raw"):
        if getattr(body, name):
            raise refuse(name, "it is not supported; /api/chat takes whole conversations")
    messages = [{"role": "system", "content": body.system}] if body.system else []
    question = OllamaMessage(role="user", content=body.prompt, images=body.images)
    fields = fields_of(service, body)
    return as_chat({**fields, "messages": [*messages, as_message(question)]})


def fields_of(service: Service, body: OllamaRequest) -> dict[str, Any]:
    options = body.options or OllamaOptions()
    fields: dict[str, Any] = {name: getattr(options, name) for name in SAME}
    number = options.num_predict
    return {
        **fields,
        "model": find_name(service, body.model),
        "max_tokens": LONGEST if number is not None and number < 0 else number,
        "repetition_penalty": options.repeat_penalty,
        "stop": options.stop or None,
        "response_format": as_format(body.format),
        "logprobs": body.logprobs or (True if body.top_logprobs else None),
        "top_logprobs": body.top_logprobs,
    }


def own_names(body: OllamaRequest) -> dict[str, str]:
    """From fields of the chat request to those of this one."""
    names = {"response_format.json_schema.schema": "format", "response_format": "format"}
    names |= {"max_tokens": "options.num_predict", "repetition_penalty": "options.repeat_penalty"}
    names |= {name: f"options.{name}" for name in SAME}
    if isinstance(body, OllamaGenerate):
        turn = f"messages[{1 if body.system else 0}]"
        for number in range(len(body.images or ())):
            names[f"{turn}.content[{number}]"] = f"images[{number}]"
    return names


def as_message(message: OllamaMessage) -> dict[str, Any]:
    """Pictures stand before the text, as Ollama puts them."""
    content: Any = message.content or ""
    if message.images:
        parts = [{"type": "image", "base64": image} for image in message.images]
        content = [*parts, {"type": "text", "text": content}] if content else parts
    plain = {
        "role": message.role,
        "content": content,
        "tool_calls": message.tool_calls or None,
        "name": message.tool_name,
        "tool_call_id": message.tool_call_id,
    }
    return {name: value for name, value in plain.items() if value is not None}


def as_format(wanted: str | dict[str, Any] | None) -> dict[str, Any] | None:
    if not wanted:
        return None
    if wanted == "json":
        return {"type": "json_object"}
    if isinstance(wanted, str):
        raise refuse("format", f"it is {wanted[:40]!r}; expected json or a schema")
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": wanted}}


def find_name(service: Service, name: str) -> str:
    """The model's name as this server knows it, without the tag that Ollama's clients add. Raises
    ApiError, in Ollama's words."""
    for each in (name, name.removesuffix(LATEST)):
        try:
            service.find_adapter(each)
            return each
        except ApiError as error:
            refused = error
    raise ApiError(404, f"model '{name[:100]}' not found", code=refused.code)
