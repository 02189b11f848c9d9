"""Requests in which one field has a value that nobody means, for every field and many values."""

import copy
import itertools
import json
import random
from collections.abc import Iterator
from typing import Any

from live_server import NAME, data_url, scene

from qwen25vl.serving.wire import NEUTRAL, REFUSED, ChatRequest

PROMPT_CANARY = "kestrel-7261-prompt"
CHAT, TOKENIZE, DETOKENIZE = "/v1/chat/completions", "/tokenize", "/detokenize"
VALUES: list[Any] = [
    -(2**63), -(2**31) - 1, -1, -0.0, 0, 1, 2, 20, 21, 128, 129, 1024, 2**31 - 1, 2**31, 2**63,
    2**64, 1e308, 1e-320, 0.5, float("nan"), float("inf"), -float("inf"), "", " ", "\0", "\ud800",
    "a", "auto", "none", "-1", "1e999", "a" * (1 << 20), [], [[]], [None], [0], [-1], [2**31],
    ["a"], {}, {"a": {}}, {"type": "text"}, {"type": []}, {"": ""}, {"-1": 1}, {"5": 1e308}, None,
    True, False, "<|im_end|>", "data:image/png;base64,AAAA", "file:///etc/passwd",
]  # fmt: skip
DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP, {"a": 1}]
VALUES.append(DEEP)
PARTS = [
    {"type": "text", "text": PROMPT_CANARY},
    {"type": "image_url", "image_url": {"url": data_url(scene(), "PNG"), "detail": "low"}},
    {"type": "video", "video": [data_url(scene()), data_url(scene("blue"))], "fps": 2},
]
CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
TOOL = {
    "type": "function",
    "function": {
        "name": "f",
        "description": "d",
        "parameters": {"type": "object", "properties": {"x": {"type": "string"}}},
    },
}
BASE: dict[str, dict[str, Any]] = {
    CHAT: {
        "model": NAME,
        "max_tokens": 2,
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": [PARTS[0]], "name": "n"},
            {"role": "assistant", "content": None, "tool_calls": [CALL]},
            {"role": "tool", "tool_call_id": "call_1", "content": "r"},
            {"role": "user", "content": PARTS[:2]},
        ],
        "tools": [TOOL],
        "stream_options": {"include_usage": True},
        "response_format": {"type": "text"},
    },
    TOKENIZE: {"messages": [{"role": "user", "content": [PARTS[2], PARTS[0]]}]},
    DETOKENIZE: {"tokens": [1, 2, 3]},
}
FURTHER = (
    "audio", "modalities", "metadata", "store", "service_tier", "reasoning_effort", "verbosity",
    "logprobs", "request_id", "grammar", "regex", "json_schema", "thinking", "enable_thinking",
    "repetition_detection", "num_ctx", "max_pixels", "fps", "__class__", "_", "",
)  # fmt: skip


def paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a body, nested ones included."""
    items: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        items = [*value.items()]
    elif isinstance(value, list):
        items = [*enumerate(value)]
    for key, inner in items:
        yield (*path, key)
        yield from paths(inner, (*path, key))


def bodies() -> Iterator[tuple[str, Any]]:
    """All of them: routes with bodies."""
    fields = {*ChatRequest.model_fields, *REFUSED, *NEUTRAL, *FURTHER}
    for route, base in BASE.items():
        names = sorted(fields) if route == CHAT else ["prompt", "model", "add_special_tokens"]
        places = list(dict.fromkeys([*paths(base), *((name,) for name in names)]))
        yield from ((route, value) for value in VALUES)
        for place, value in itertools.product(places, VALUES):
            yield route, with_value(base, place, value)


def with_value(base: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A body with another value at a place."""
    body = copy.deepcopy(base)
    target: Any = body
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return body


def chosen(number: int, seed: int) -> list[tuple[str, str]]:
    """Some of the requests, as JSON with what JSON does not have."""
    everything = list(bodies())
    some = random.Random(seed).sample(everything, min(number, len(everything)))
    return [(route, json.dumps(body)) for route, body in some]
