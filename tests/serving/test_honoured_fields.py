"""Fields that a first reading of the server ignored: each is honoured, or refused by its name."""

import base64
import io
import json

import pytest
from live_server import NAME, scene

SCHEMA = {
    "type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"],
    "additionalProperties": False,
}  # fmt: skip
FUNCTION = {"type": "function", "function": {"name": "look"}}


def refused(reply) -> str:
    assert reply.status_code == 400, reply.text
    return reply.json()["error"]["param"]


@pytest.mark.parametrize(
    "field",
    [
        {"guided_json": SCHEMA},
        {"structured_outputs": {"json": SCHEMA}},
        {"response_format": {"type": "json_schema", "json_schema": {"schema": SCHEMA}}},
    ],
)
def test_completions_follow_schemas(live, field):
    """They were taken and ignored: people took any text for one that follows."""
    body = {"prompt": ["The answer: ", "So: "], "max_tokens": 40, "temperature": 0, **field}
    for choice in live.http.post("/v1/completions", json=body).json()["choices"]:
        assert choice["finish_reason"] == "stop"
        assert set(json.loads(choice["text"])) == {"a"}


def test_a_broken_schema_of_a_completion_is_refused(live):
    body = {"prompt": "a", "guided_json": {"type": "nothing"}}
    assert refused(live.http.post("/v1/completions", json=body)) == "guided_json"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_new_tokens", 3), ("n_predict", 3), ("repeat_penalty", 1.4), ("stop_regex", "a"),
        ("max_pixels", 3136), ("echo", True), ("logits_processors", ["a"]), ("samplers", ["top_k"]),
        ("max_tokens", 0),
    ],
)  # fmt: skip
def test_what_would_change_an_answer_is_refused(live, field, value):
    given = {"max_tokens": None, field: value}
    assert refused(live.ask(**given)) == field


def test_a_length_in_other_words_beside_the_length(live):
    """VLMEvalKit sends both where its users write max_new_tokens into its configuration."""
    reply = live.ask(max_new_tokens=4096, max_tokens=2).json()
    assert reply["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    "choice", [{"type": ["auto"]}, {"type": {}}, {"type": "allowed_tools", "allowed_tools": 3}]
)
def test_a_choice_of_tools_that_is_none(live, choice):
    """A list in the place of a name is hashed nowhere."""
    assert refused(live.ask(tools=[FUNCTION], tool_choice=choice)) == "tool_choice"


@pytest.mark.parametrize(("field", "value"), [("repeat_penalty", 1.0), ("n_predict", -1)])
def test_neutral_values_pass(live, field, value):
    assert live.ask(**{field: value}).status_code == 200


@pytest.mark.parametrize("value", ["response_format", "prompt_logprobs", "return_token_ids"])
def test_fields_of_other_routes_at_responses(live, value):
    given = {"response_format": {"type": "json_object"}, "prompt_logprobs": 0}.get(value, True)
    body = {"model": NAME, "input": "Hello", value: given}
    assert refused(live.http.post("/v1/responses", json=body)) == value


@pytest.mark.parametrize("extra", [{}, {"vllm_xargs": {"no_repeat_ngram_size": 1}}])
def test_repeated_ngrams(live, extra):
    """MinerU sends it in vllm_xargs."""
    fields = extra or {"no_repeat_ngram_size": 1}
    asked = {"ignore_eos": True, "max_tokens": 40, "return_token_ids": True, "temperature": 0}
    plain = live.ask("Is there a dog?", **asked).json()
    changed = live.ask("Is there a dog?", **asked, **fields).json()
    seen = [*changed["prompt_token_ids"], *changed["choices"][0]["token_ids"]]
    new = changed["choices"][0]["token_ids"]
    assert len(set(new)) == len(new)
    assert not set(new) & set(changed["prompt_token_ids"])
    assert len(seen) == changed["usage"]["total_tokens"]
    assert plain["choices"][0]["token_ids"] != new


def test_tokens_named_by_their_ids(live):
    asked = {"logprobs": True, "top_logprobs": 1, "return_token_ids": True, "temperature": 0}
    choice = live.ask(**asked, return_tokens_as_token_ids=True).json()["choices"][0]
    names = [each["token"] for each in choice["logprobs"]["content"]]
    assert names == [f"token_id:{token}" for token in choice["token_ids"]]
    likeliest = [each["top_logprobs"][0]["token"] for each in choice["logprobs"]["content"]]
    assert likeliest == names


def test_the_first_chunk_has_the_tokens_of_the_prompt(live):
    reply = live.ask(stream=True, return_token_ids=True)
    first = json.loads(reply.text.splitlines()[0].removeprefix("data: "))
    assert first["prompt_token_ids"] == live.ask(return_token_ids=True).json()["prompt_token_ids"]


@pytest.mark.parametrize(
    ("choice", "reason"),
    [
        ({"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [FUNCTION]}},
         "tool_calls"),
        (FUNCTION, "stop"),
    ],
)  # fmt: skip
def test_only_a_call_by_name_ends_with_stop(live, choice, reason):
    reply = live.ask(tools=[FUNCTION], tool_choice=choice, max_tokens=60).json()
    assert reply["choices"][0]["message"]["tool_calls"]
    assert reply["choices"][0]["finish_reason"] == reason


@pytest.mark.parametrize("place", ["mm_processor_kwargs", "media_io_kwargs"])
def test_a_limit_is_named_where_it_was_given(live, place):
    file = io.BytesIO()
    frames = [scene("red"), scene("blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=500)
    url = "data:image/gif;base64," + base64.b64encode(file.getvalue()).decode()
    messages = [{"role": "user", "content": [{"type": "video_url", "video_url": {"url": url}}]}]
    given = {"num_frames": 10**6}
    given = {"video": given} if place == "media_io_kwargs" else given
    body = {"messages": messages, "max_tokens": 2, place: given}
    inner = ".video" if place == "media_io_kwargs" else ""
    reply = live.http.post("/v1/chat/completions", json=body)
    assert refused(reply) == f"{place}{inner}.num_frames"
