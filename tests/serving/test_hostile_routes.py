"""Fields of the wrong type on the routes that say it in other words: nothing of it is the server's
fault, and the error tells which field it is."""

import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

import pytest
from hostile_fields import CHAT, TOOL, paths, with_value
from live_server import NAME, Live, data_url, scene

from qwen25vl.serving.anthropic.messages_wire import AnthropicRequest
from qwen25vl.serving.ollama.ollama_wire import OllamaChat, OllamaGenerate
from qwen25vl.serving.responses.wire import ResponsesRequest
from qwen25vl.serving.wire import ChatRequest, CompletionRequest, Wire

MESSAGES, RESPONSES, COMPLETIONS = "/v1/messages", "/v1/responses", "/v1/completions"
COUNT, INPUT = "/v1/messages/count_tokens", f"{RESPONSES}/input_tokens"
RENDER, OLLAMA, GENERATE = f"{CHAT}/render", "/api/chat", "/api/generate"
VALUES: list[Any] = [
    [], [[]], [None], ["a"], {}, {"type": []}, {"type": {}}, {"type": "function"}, {"a": {}},
    {"function": []}, {"type": "allowed_tools", "tools": 1}, {"type": "json_schema"}, "a", "", "\0",
    0, -1, 2**64, 0.5, True, False, None,
]  # fmt: skip
PICTURE = {"type": "image_url", "image_url": {"url": data_url(scene(), "PNG")}}
BASE64 = data_url(scene(), "PNG").partition(",")[2]
SOURCE = {"type": "base64", "media_type": "image/png", "data": BASE64}
SCHEMA = {"type": "object", "properties": {"x": {"type": "string"}}}
ITEMS = [
    {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
    {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
    {"type": "function_call_output", "call_id": "c", "output": "r"},
]
BLOCKS = [
    {"role": "user", "content": [{"type": "image", "source": SOURCE}]},
    {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "r"}]},
]
ANTHROPIC = {
    "model": NAME,
    "messages": BLOCKS,
    "system": [{"type": "text", "text": "s"}],
    "tools": [{"name": "f", "description": "d", "input_schema": SCHEMA}],
    "tool_choice": {"type": "auto"},
    "output_config": {},
}
ALLOWED = {"mode": "auto", "tools": [{"type": "function", "function": {"name": "f"}}]}
CHOICE = {"type": "allowed_tools", "allowed_tools": ALLOWED}
FLAT = {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "f"}]}
BASE: dict[str, tuple[type[Wire], dict[str, Any]]] = {
    CHAT: (ChatRequest, {
        "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1, "tools": [TOOL],
        "tool_choice": CHOICE, "mm_processor_kwargs": {"fps": 1}, "media_io_kwargs": {"video": {}},
        "chat_template_kwargs": {"a": 1}, "vllm_xargs": {}, "logit_bias": {"1": 1},
    }),
    RENDER: (ChatRequest, {"messages": [{"role": "user", "content": [PICTURE]}], "tools": [TOOL]}),
    RESPONSES: (ResponsesRequest, {
        "input": ITEMS, "max_output_tokens": 1,
        "tools": [{"type": "function", "name": "f", "parameters": SCHEMA}],
        "text": {"format": {"type": "text"}}, "reasoning": {"effort": "low"}, "tool_choice": FLAT,
    }),
    INPUT: (ResponsesRequest, {"input": ITEMS}),
    COMPLETIONS: (CompletionRequest, {
        "prompt": ["a"], "max_tokens": 1, "stream_options": {"include_usage": True},
        "structured_outputs": {"choice": ["a"]},
    }),
    MESSAGES: (AnthropicRequest, {**ANTHROPIC, "max_tokens": 1}),
    COUNT: (AnthropicRequest, ANTHROPIC),
    OLLAMA: (OllamaChat, {
        "model": NAME, "messages": [{"role": "user", "content": "Hi", "images": [BASE64]}],
        "tools": [TOOL], "options": {"num_predict": 1}, "stream": False,
    }),
    GENERATE: (OllamaGenerate, {
        "model": NAME, "prompt": "Hi", "options": {"num_predict": 1}, "stream": False,
        "format": SCHEMA,
    }),
}  # fmt: skip


def bodies() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(route, the outermost name of the field, the body with another value there)"""
    for route, (kind, base) in BASE.items():
        places = list(dict.fromkeys([*paths(base), *((name,) for name in kind.model_fields)]))
        for place, value in itertools.product(places, VALUES):
            yield route, str(place[0]), with_value(base, place, value)


def run(live: Live, requests: list[tuple[str, str, dict[str, Any]]]) -> None:
    wrong = []
    for route, name, body in requests:
        reply = live.http.post(route, json=body)
        shown = f"{route} {name} …{json.dumps(body)[-500:]}: {reply.status_code} {reply.text[:300]}"
        if reply.status_code not in (200, 400, 404):
            wrong.append(shown)
        elif reply.status_code == 400 and name not in reply.text:
            wrong.append(f"does not name it: {shown}")
    assert not wrong, f"{len(wrong)} of {len(requests)}:\n" + "\n".join(wrong[:40])


def test_some_fields_of_every_route(live):
    """A list where a choice of tools has its names was the server's fault, and Anthropic's and
    Ollama's clients were told "expected a text" of a field that nobody named."""
    run(live, random.Random(1).sample(list(bodies()), 200))


@pytest.mark.parametrize(
    ("route", "changed", "name"),
    [
        (RESPONSES, {"tool_choice": {**FLAT, "tools": 1}}, "tool_choice.tools"),
        (RESPONSES, {"tool_choice": {**FLAT, "tools": [{"name": []}]}}, "tool_choice.tools[0]"),
        (RESPONSES, {"text": {"format": {"type": "json_schema"}}}, "text.format"),
        (MESSAGES, {"system": [{"type": "text", "text": 1}]}, "system[0].text"),
        (MESSAGES, {"messages": [{"role": "user", "content": [{"type": []}]}]},
         "messages[0].content[0]"),
        (OLLAMA, {"tools": [], "format": {"type": 1}}, "format"),
        (GENERATE, {"images": ["a"]}, "images[0]"),
        (GENERATE, {"options": {"temperature": 3.0}}, "options.temperature"),
    ],
)  # fmt: skip
def test_an_error_names_the_field_that_came(live, route, changed, name):
    reply = live.http.post(route, json={**BASE[route][1], **changed})
    assert reply.status_code == 400
    error = reply.json()["error"]
    said = error if isinstance(error, str) else error.get("param") or error["message"]
    assert said.removeprefix("Invalid '").startswith(name), reply.text


@pytest.mark.slow
def test_every_field_of_every_route(live):
    run(live, list(bodies()))
