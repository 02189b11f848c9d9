"""Anthropic's Messages API through its own client, against a live server."""

import base64
import io
import json
from types import SimpleNamespace

import anthropic
import pytest
from live_server import NAME, QUESTION, Live, scene

from qwen25vl.serving.answer_events import AnswerState, CallDelta, End, TextDelta
from qwen25vl.serving.anthropic.messages_blocks import Blocks, stop_of
from qwen25vl.serving.anthropic.messages_wire import AnthropicRequest, chat_of_message
from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.settings import ServerSettings

GREEDY = {"temperature": 0}  # the newest SDK has no such argument any more


@pytest.fixture(scope="module")
def client(live: Live) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0)


def block(picture) -> dict:
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return {
        "type": "image",
        "source": {"type": "base64", "media_type": "image/png", "data": data},
    }


def about(picture) -> list:
    return [{"role": "user", "content": [block(picture), {"type": "text", "text": QUESTION}]}]


def test_a_message_answers_as_ask_does(live, client):
    expected = live.vlm.ask(QUESTION, images=[scene()], system="Be brief.", max_new_tokens=24)
    asked = {"model": NAME, "max_tokens": 24, "messages": about(scene())}
    reply = client.messages.create(
        **asked, system=[{"type": "text", "text": "Be brief."}], extra_body=GREEDY
    )
    assert reply.content[0].text == expected.text
    assert (reply.type, reply.role, reply.model) == ("message", "assistant", NAME)
    assert (reply.stop_reason, reply.stop_sequence) == ("end_turn", None)
    usage = reply.usage
    read = usage.input_tokens + usage.cache_read_input_tokens
    assert read == expected.usage.prompt_tokens
    assert usage.output_tokens == expected.usage.completion_tokens
    assert reply._request_id.startswith("req_")
    plain = client.messages.create(**asked, system="Be brief.", extra_body=GREEDY)
    assert plain.content == reply.content


def test_a_stream_has_its_events_in_order(live, client):
    """The SDK fails on an event before message_start; others on a block that was never begun."""
    asked = {"model": NAME, "max_tokens": 24, "messages": about(scene()), "extra_body": GREEDY}
    whole = client.messages.create(**asked)
    with client.messages.stream(**asked) as stream:
        assert "".join(stream.text_stream) == whole.content[0].text
        final = stream.get_final_message()
    assert final.content[0].text == whole.content[0].text
    assert final.stop_reason == whole.stop_reason
    assert final.usage.output_tokens == whole.usage.output_tokens
    raw = live.http.post("/v1/messages", json={**asked, **GREEDY, "stream": True})
    events = [line[7:] for line in raw.text.splitlines() if line.startswith("event: ")]
    middle = events[3:-3]
    assert events[:3] == ["message_start", "content_block_start", "ping"]
    assert set(middle) == {"content_block_delta"}
    assert events[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    kinds = [json.loads(line[6:])["type"] for line in raw.text.splitlines() if line[:5] == "data:"]
    assert kinds == events


def test_how_it_ended(client):
    """A stop sequence is reported by name; agents go on or not by stop_reason."""
    asked = {"model": NAME, "messages": about(scene()), "extra_body": GREEDY}
    assert client.messages.create(**asked, max_tokens=2).stop_reason == "max_tokens"
    text = client.messages.create(**asked, max_tokens=24).content[0].text
    word = text.split()[-1]
    stopped = client.messages.create(**asked, max_tokens=24, stop_sequences=[word])
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", word)
    assert word not in stopped.content[0].text


def test_tokens_are_counted_with_their_pictures(live, client):
    expected = live.vlm.ask(QUESTION, images=[scene()], max_new_tokens=1)
    counted = client.messages.count_tokens(model=NAME, messages=about(scene()))
    assert counted.input_tokens == expected.usage.prompt_tokens


def test_results_of_tools_may_be_pictures(live, client):
    """An agent's screenshot is inside a tool_result; read as text, it is nothing but a hash."""
    call = {"type": "tool_use", "id": "toolu_1", "name": "look", "input": {"x": 1}}

    def result(*blocks):
        return {"type": "tool_result", "tool_use_id": "toolu_1", "content": [*blocks]}

    def count(*blocks):
        messages = [
            {"role": "user", "content": "Look."},
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result(*blocks)]},
        ]
        return client.messages.count_tokens(model=NAME, messages=messages).input_tokens

    pictures = live.vlm.ask("a", images=[scene()], max_new_tokens=1).usage.visual_tokens
    text = {"type": "text", "text": "done"}
    assert count(text, block(scene())) == count(text) + pictures + 2  # with its borders


def test_neighbours_of_one_role_are_one_turn(client):
    one = [{"role": "user", "content": [{"type": "text", "text": t} for t in ("a b", "c d")]}]
    two = [{"role": "user", "content": "a b"}, {"role": "user", "content": "c d"}]
    counts = [client.messages.count_tokens(model=NAME, messages=m).input_tokens for m in (one, two)]
    assert counts[0] == counts[1]


def test_an_answer_that_was_begun_goes_on(live, client):
    begun = [*about(scene()), {"role": "assistant", "content": "The square"}]
    reply = client.messages.create(model=NAME, max_tokens=8, messages=begun, extra_body=GREEDY)
    expected = live.ask(
        messages=[
            {"role": "user", "content": [block(scene()), {"type": "text", "text": QUESTION}]},
            {"role": "assistant", "content": "The square"},
        ],
        temperature=0,
    )
    assert reply.content[0].text == expected.json()["choices"][0]["message"]["content"]


def test_errors_are_anthropics(live, client):
    """Its client chooses the exception by status, and shows error.type and error.message."""
    hello = {"max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]}
    with pytest.raises(anthropic.NotFoundError) as missing:
        client.messages.create(model="claude-3", **hello)
    assert missing.value.body["error"]["type"] == "not_found_error"
    with pytest.raises(anthropic.BadRequestError, match="max_tokens"):
        client.messages.create(model=NAME, messages=hello["messages"], max_tokens=0)
    tool = {"type": "bash_20250124", "name": "bash"}
    with pytest.raises(anthropic.BadRequestError, match="bash_20250124"):
        client.messages.create(model=NAME, **hello, tools=[tool])
    with pytest.raises(anthropic.BadRequestError) as wrong:
        client.messages.create(
            model=NAME, max_tokens=4, messages=[{"role": "user", "content": "word " * 9000}]
        )
    assert wrong.value.body["type"] == "error"
    assert wrong.value.body["error"]["type"] == "invalid_request_error"
    assert live.http.get("/v1/messages").json()["error"]["type"] == "invalid_request_error"
    assert "code" in live.http.post("/v1/messages2").json()["error"]  # OpenAI's elsewhere


def test_refusals_of_the_guard_are_too(demo):
    """401, 413, 429 and 503 are raised before any route is found."""
    server = Live(ServerSettings(port=0, api_keys=("k",), max_body_bytes=2000), demo)
    asked = {
        "model": "default", "max_tokens": 4, "messages": [{"role": "user", "content": "Hello"}]
    }  # fmt: skip
    try:
        wrong = anthropic.Anthropic(base_url=server.url, api_key="x", max_retries=0)
        with pytest.raises(anthropic.AuthenticationError) as caught:
            wrong.messages.create(**asked)
        assert caught.value.body["error"]["type"] == "authentication_error"
        right = anthropic.Anthropic(base_url=server.url, api_key="k", max_retries=0)
        assert right.messages.create(**asked).content
        with pytest.raises(anthropic.APIStatusError) as large:
            right.messages.create(**{**asked, "system": "x" * 3000})
        assert large.value.status_code == 413
        assert large.value.body["error"]["type"] == "request_too_large"
        server.service.num_open = 1000
        with pytest.raises(anthropic.RateLimitError) as busy:
            right.messages.create(**asked)
        assert busy.value.body["error"]["type"] == "rate_limit_error"
        assert int(busy.value.response.headers["retry-after"]) >= 1
        server.service.num_open, server.service.is_draining = 0, True
        with pytest.raises(anthropic.APIStatusError) as ending:
            right.messages.create(**asked)
        assert ending.value.status_code == 529
        assert ending.value.body["error"]["type"] == "overloaded_error"
        server.service.is_draining = False
    finally:
        server.close()


def test_tools_in_openais_words():
    """tool_choice and its switch, schemas and stop sequences; what Anthropic runs is refused."""
    tools = [{"name": "zoom", "description": "Zooms.", "input_schema": {"type": "object"}}]
    body = {
        "model": NAME, "max_tokens": 5, "messages": [{"role": "user", "content": "a"}],
        "stop_sequences": ["x"], "thinking": {"type": "disabled"}, "metadata": {"user_id": "u"},
    }  # fmt: skip

    def translate(**fields):
        return chat_of_message(AnthropicRequest.model_validate({**body, **fields}))

    chat = translate(
        tools=tools, tool_choice={"type": "any", "disable_parallel_tool_use": True}, top_k=3
    )
    function = {"name": "zoom", "description": "Zooms.", "parameters": {"type": "object"}}
    assert chat.tools == [{"type": "function", "function": function}]
    assert (chat.tool_choice, chat.parallel_tool_calls) == ("required", False)
    assert (chat.stop, chat.top_k, chat.max_tokens) == (["x"], 3, 5)
    named = translate(tools=tools, tool_choice={"type": "tool", "name": "zoom"})
    assert named.tool_choice == {"type": "function", "function": {"name": "zoom"}}
    assert translate(tools=tools, tool_choice={"type": "none"}).tool_choice == "none"
    form = {"type": "json_schema", "schema": {"type": "object"}}
    chosen = translate(output_config={"format": form}).response_format
    assert chosen["json_schema"]["schema"] == {"type": "object"}
    for wrong in ({"tool_choice": {"type": "tool"}, "tools": tools}, {"container": "c"}):
        with pytest.raises(ApiError):
            translate(**wrong)


def test_tool_uses_are_blocks_of_their_own():
    """Each block is begun once and ended once, with its own index."""
    answer = AnswerState(0)
    usage = {"prompt_tokens": 7, "completion_tokens": 5}
    generation = SimpleNamespace(
        usage=lambda: usage, job=SimpleNamespace(num_cached=3), answers=[answer]
    )
    answer.calls.append(SimpleNamespace(id="call_1", name="zoom", arguments='{"x": 1}'))
    events = [
        TextDelta(0, "Look:", ()),
        CallDelta(0, 0, "call_1", "zoom", ""),
        CallDelta(0, 0, None, None, '{"x": 1}'),
        CallDelta(0, 1, "call_2", "stop", "{}"),
    ]
    answer.end = End(0, "stop", None)
    blocks = Blocks()
    shown = b"".join(part for e in (*events, answer.end) for part in blocks.show(generation, e))
    sent = [json.loads(line[6:]) for line in shown.splitlines() if line.startswith(b"data: ")]
    assert [(each["type"], each.get("index")) for each in sent] == [
        ("content_block_start", 0),
        ("ping", None),
        ("content_block_delta", 0),
        ("content_block_stop", 0),
        ("content_block_start", 1),
        ("content_block_delta", 1),
        ("content_block_delta", 1),
        ("content_block_stop", 1),
        ("content_block_start", 2),
        ("content_block_delta", 2),
        ("content_block_stop", 2),
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert sent[-2]["delta"]["stop_reason"] == "tool_use"
    assert sent[-2]["usage"]["input_tokens"] == 4
    answer.end = End(0, "length", None)
    assert stop_of(answer)["stop_reason"] == "max_tokens"


def test_a_forced_tool_is_used(client):
    """Whole and streamed, with an input after its schema; the next turn understands it."""
    schema = {
        "type": "object", "properties": {"shape": {"enum": ["square", "circle"]}},
        "required": ["shape"], "additionalProperties": False,
    }  # fmt: skip
    tools = [{"name": "report", "description": "Say what is seen.", "input_schema": schema}]
    asked = {
        "model": NAME, "max_tokens": 256, "messages": about(scene()), "extra_body": GREEDY,
        "tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }  # fmt: skip
    whole = client.messages.create(**asked)
    [used] = [each for each in whole.content if each.type == "tool_use"]
    assert (whole.stop_reason, used.name) == ("tool_use", "report")
    assert used.input["shape"] in ("square", "circle")
    with client.messages.stream(**asked) as stream:
        final = stream.get_final_message()
    [streamed] = [each for each in final.content if each.type == "tool_use"]
    assert (streamed.name, streamed.input) == (used.name, used.input)
    assert final.stop_reason == "tool_use"
    named = client.messages.create(**{**asked, "tool_choice": {"type": "tool", "name": "report"}})
    assert named.stop_reason == "tool_use"
    result = {"type": "tool_result", "tool_use_id": used.id, "content": [block(scene("blue"))]}
    messages = [
        *asked["messages"],
        {"role": "assistant", "content": [each.to_dict() for each in whole.content]},
        {"role": "user", "content": [result]},
    ]
    after = client.messages.create(
        **{**asked, "messages": messages, "tool_choice": {"type": "none"}, "max_tokens": 8}
    )
    assert after.stop_reason in ("end_turn", "max_tokens")
    assert [each.type for each in after.content] == ["text"]


def test_an_answer_after_a_schema(client):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "schema": {**schema, "additionalProperties": False}}
    reply = client.messages.create(
        model=NAME, max_tokens=128, messages=about(scene()), output_config={"format": form},
        extra_body=GREEDY,
    )  # fmt: skip
    assert set(json.loads(reply.content[0].text)) == {"ok"}
