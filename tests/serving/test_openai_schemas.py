"""Real answers of the server, held against OpenAI's own specification (openai_spec/spec.json)."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from live_server import NAME, QUESTION, data_url, scene

SPEC = Path(__file__).with_name("openai_spec") / "spec.json"
TOOL = {
    "name": "report",
    "description": "Say what was seen.",
    "parameters": {
        "type": "object",
        "properties": {"is_square": {"type": "boolean"}},
        "required": ["is_square"],
        "additionalProperties": False,
    },
}
PLAIN = [{"role": "user", "content": "Is there a dog?"}]
PICTURE = {"type": "image_url", "image_url": {"url": data_url(scene()), "detail": "low"}}
SEEN = [{"role": "user", "content": [PICTURE, {"type": "text", "text": QUESTION}]}]
ANSWER = {"type": "json_schema", "json_schema": {"name": "a", "schema": TOOL["parameters"]}}
CALLS = {"tools": [{"type": "function", "function": TOOL}], "tool_choice": "required"}
CHATS: list[dict[str, Any]] = [
    {"messages": PLAIN},
    {"messages": SEEN, "logprobs": True, "top_logprobs": 2},
    {"messages": PLAIN, "n": 2, "max_completion_tokens": 2},
    {"messages": SEEN, "max_tokens": 256, **CALLS},
    {"messages": SEEN, "max_tokens": 256, "response_format": ANSWER},
]
COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": "A dog"},
    {"prompt": ["A dog", "A cat"], "n": 2, "logprobs": 2, "echo": True},
    {"prompt": [1, 2, 3], "max_tokens": 2},
]
PARTS = [
    {"type": "input_image", "image_url": data_url(scene()), "detail": "auto"},
    {"type": "input_text", "text": QUESTION},
]
FORMAT = {"type": "json_schema", "name": "a", "schema": TOOL["parameters"]}
FLAT = {"type": "function", "strict": True, **TOOL}
RESPONSES: list[dict[str, Any]] = [
    {"input": "Is there a dog?", "user": "u", "metadata": {"a": "b"}, "truncation": "auto"},
    {"input": [{"type": "message", "role": "user", "content": PARTS}], "max_output_tokens": 2},
    {"input": "Is there a dog?", "include": ["message.output_text.logprobs"], "top_logprobs": 2},
    {"input": "Report.", "tools": [FLAT], "tool_choice": "required"},
    {"input": "Report.", "text": {"format": FORMAT}, "safety_identifier": "s"},
]


@pytest.fixture(scope="module")
def spec() -> dict[str, Any]:
    return json.loads(SPEC.read_text("utf-8"))


@pytest.fixture(scope="module")
def hold(spec):
    """Assert that a value is what a schema of the specification says."""

    def hold(value: Any, name: str) -> None:
        schema = {"$ref": f"#/components/schemas/{name}", "components": spec["components"]}
        found = jsonschema.Draft202012Validator(schema).iter_errors(value)
        error = jsonschema.exceptions.best_match(found)
        assert error is None, f"{name}: {error.json_path}: {error.message[:500]}"

    return hold


def send(live, path: str, body: dict[str, Any]) -> dict[str, Any]:
    reply = live.http.post(f"/v1/{path}", json={"model": NAME, "temperature": 0, **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def stream(live, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    whole = {"model": NAME, "temperature": 0, "stream": True, **body}
    reply = live.http.post(f"/v1/{path}", json=whole)
    assert reply.status_code == 200, reply.text
    lines = [line[6:] for line in reply.text.splitlines() if line.startswith("data: ")]
    return [json.loads(line) for line in lines if line != "[DONE]"]


def without_usage(value: dict[str, Any], is_early: bool) -> dict[str, Any]:
    """What is sent before the end has a usage of null: so say OpenAI's texts and examples, but not
    its schemas."""
    if not is_early:
        return value
    assert value["usage"] is None
    return {name: each for name, each in value.items() if name != "usage"}


@pytest.mark.parametrize("body", CHATS)
def test_chat(live, hold, body):
    hold(send(live, "chat/completions", body), "CreateChatCompletionResponse")


@pytest.mark.parametrize("body", CHATS)
def test_chat_in_chunks(live, hold, body):
    chunks = stream(live, "chat/completions", {**body, "stream_options": {"include_usage": True}})
    assert len(chunks) > 2
    for chunk in chunks:
        early = without_usage(chunk, is_early=bool(chunk["choices"]))
        hold(early, "CreateChatCompletionStreamResponse")


@pytest.mark.parametrize("body", COMPLETIONS)
def test_completions(live, hold, body):
    """The schema has no null for the first token of a prompt, of which nothing is known; OpenAI's
    server and evaluation programs have."""
    whole = send(live, "completions", body)
    for choice in whole["choices"]:
        if body.get("echo"):
            assert choice["logprobs"]["token_logprobs"].pop(0) is None
            assert choice["logprobs"]["top_logprobs"].pop(0) is None
    hold(whole, "CreateCompletionResponse")


@pytest.mark.parametrize("body", COMPLETIONS)
def test_completions_in_chunks(live, hold, body):
    """OpenAI has one schema for both; chunks have a finish_reason of null before the last."""
    for chunk in stream(live, "completions", {**body, "echo": False}):
        for choice in chunk["choices"]:
            choice["finish_reason"] = choice["finish_reason"] or "stop"
        hold(chunk, "CreateCompletionResponse")


@pytest.mark.parametrize("body", RESPONSES)
def test_responses(live, hold, body):
    whole = send(live, "responses", body)
    hold(whole, "Response")
    name = whole["id"]
    hold(live.http.get(f"/v1/responses/{name}").json(), "Response")
    hold(live.http.get(f"/v1/responses/{name}/input_items").json(), "ResponseItemList")


@pytest.mark.parametrize("body", RESPONSES)
def test_events_of_responses(live, hold, body):
    events = stream(live, "responses", body)
    assert len(events) > 6
    for event in events:
        if "response" in event:
            is_early = event["type"] in ("response.created", "response.in_progress")
            event["response"] = without_usage(event["response"], is_early)
        hold(event, "ResponseStreamEvent")


def test_models_and_counts(live, hold):
    hold(live.http.get("/v1/models").json(), "ListModelsResponse")
    hold(live.http.get(f"/v1/models/{NAME}").json(), "Model")
    hold(send(live, "responses/input_tokens", {"input": "Hello"}), "TokenCountsResource")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "chat/completions", {}),
        ("POST", "chat/completions", {"messages": PLAIN, "model": "another"}),
        ("POST", "chat/completions", {"messages": PLAIN, "temperature": "hot"}),
        ("PUT", "chat/completions", {}),
        ("POST", "completions", {"prompt": "a", "suffix": "b"}),
        ("POST", "responses", {"input": "a", "background": True}),
        ("POST", "responses/compact", {"input": "a"}),
        ("GET", "responses/resp_unknown", None),
        ("GET", "models/another", None),
        ("GET", "nowhere", None),
    ],
)
def test_errors(live, hold, method, path, body):
    reply = live.http.request(method, f"/v1/{path}", json=body)
    assert reply.status_code in (400, 404, 405)
    assert (reply.status_code == 405) == ("allow" in reply.headers)
    hold(reply.json(), "ErrorResponse")
