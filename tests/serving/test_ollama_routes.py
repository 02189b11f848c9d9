"""Ollama's routes through its own client, against a live server."""

import base64
import io
import json
import time
from types import SimpleNamespace

import ollama
import pytest
from live_server import NAME, QUESTION, Live, scene

from qwen25vl.serving.answer_events import AnswerState, CallDelta, End, TextDelta, TokenInfo
from qwen25vl.serving.ollama.ollama_lines import Lines
from qwen25vl.serving.settings import ServerSettings

OPTIONS = {"temperature": 0, "num_predict": 24, "num_ctx": 2048}


@pytest.fixture(scope="module")
def client(live: Live) -> ollama.Client:
    return ollama.Client(host=live.url)


@pytest.fixture(scope="module")
def picture() -> str:
    file = io.BytesIO()
    scene().save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def about(picture):
    return [{"role": "user", "content": QUESTION, "images": [picture]}]


def test_chat_answers_as_ask_does(live, client, picture):
    """Pictures stand before the text; raw base64 is no path and no address."""
    expected = live.vlm.ask(QUESTION, images=[scene()], max_new_tokens=24)
    reply = client.chat(NAME, about(picture), options=OPTIONS, stream=False)
    assert reply.message.content == expected.text
    assert reply.message.role == "assistant"
    assert reply.prompt_eval_count == expected.usage.prompt_tokens
    assert reply.eval_count == expected.usage.completion_tokens
    assert (reply.done, reply.done_reason) == (True, "stop")
    assert reply.model == NAME
    parts = reply.load_duration + reply.prompt_eval_duration + reply.eval_duration
    assert 1_000_000 < reply.total_duration < 60e9
    assert parts <= reply.total_duration + 2


def test_streams_are_the_default_and_join_to_the_answer(live, client, picture):
    """Ollama's `stream` is true where it is not given; only the last line is done."""
    whole = client.chat(NAME, about(picture), options=OPTIONS)
    parts = list(client.chat(NAME, about(picture), options=OPTIONS, stream=True))
    assert "".join(part.message.content for part in parts) == whole.message.content
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
    assert parts[-1].eval_count == whole.eval_count
    body = {"model": NAME, "messages": about(picture), "options": OPTIONS}
    raw = live.http.post("/api/chat", json=body)
    assert raw.headers["content-type"].startswith("application/x-ndjson")
    assert [json.loads(line)["done"] for line in raw.text.splitlines()].count(True) == 1


def test_generate_is_a_conversation_of_one_question(live, client, picture):
    expected = live.vlm.ask(QUESTION, images=[scene()], system="Be brief.", max_new_tokens=24)
    asked = {"model": NAME, "prompt": QUESTION, "system": "Be brief.", "images": [picture]}
    reply = client.generate(**asked, options=OPTIONS)
    assert reply.response == expected.text
    parts = list(client.generate(**asked, options=OPTIONS, stream=True))
    assert "".join(part.response for part in parts) == expected.text
    assert parts[-1].done_reason == "stop"


def test_options_reach_the_engine(client):
    """An option that is lost changes the answer without a word."""
    hello = [{"role": "user", "content": "Hello"}]
    cut = client.chat(NAME, hello, options={"num_predict": 3, "temperature": 0})
    assert (cut.eval_count, cut.done_reason) == (3, "length")
    drawn = {"temperature": 1.9, "top_k": 0, "top_p": 1.0, "num_predict": 12}
    texts = {
        client.chat(NAME, hello, options={**drawn, "seed": seed}).message.content
        for seed in (1, 1, 2, 3)
    }
    assert len(texts) > 1
    first = client.chat(NAME, hello, options={"temperature": 0, "num_predict": 12})
    word = first.message.content.split()[0]
    stopped = client.chat(NAME, hello, options={"temperature": 0, "stop": [word]})
    assert word not in stopped.message.content
    endless = client.chat(NAME, hello, options={"temperature": 0, "num_predict": -1})
    assert endless.done_reason in ("stop", "length")


def test_logprobs(client):
    reply = client.chat(
        NAME, [{"role": "user", "content": "Hello"}], options={"temperature": 0, "num_predict": 4},
        logprobs=True, top_logprobs=2,
    )  # fmt: skip
    assert len(reply.logprobs) == 4
    assert all(len(each.top_logprobs) == 2 for each in reply.logprobs)


def test_names_have_the_tag_that_clients_add(live, client):
    """`ollama run NAME` asks for NAME:latest, and lists compare whole names."""
    assert client.generate(f"{NAME}:latest", "Hello", options=OPTIONS).response
    with pytest.raises(ollama.ResponseError, match="model 'llama3' not found") as caught:
        client.chat("llama3", [{"role": "user", "content": "Hello"}])
    assert caught.value.status_code == 404
    [listed] = client.list().models
    assert listed.model == f"{NAME}:latest"
    assert listed.size == sum(each.nbytes for each in live.vlm.model.state_dict().values())
    assert listed.details.parameter_size == "10.9M"
    [running] = client.ps().models
    assert running.context_length == 8192
    assert live.http.get("/api/version").json()["version"]


def test_show_says_that_pictures_may_be_attached(client):
    shown = client.show(NAME)
    assert {"completion", "vision", "tools"} == set(shown.capabilities)
    assert shown.modelinfo["qwen25vl.context_length"] == 8192
    assert "im_start" in shown.template


def test_a_request_without_a_question_loads(client):
    assert client.generate(NAME, "").done_reason == "load"
    assert client.chat(NAME, [], keep_alive=0).done_reason == "unload"


@pytest.mark.parametrize(
    ("path", "fields", "said"),
    [
        ("chat", {"messages": "Hello"}, "messages"),
        ("chat", {"messages": [{"role": "user", "content": "a", "images": ["x"]}]}, ""),
        ("chat", {"messages": [{"role": "user", "content": "a"}], "format": "yaml"}, "format"),
        ("generate", {"prompt": "a", "suffix": "b"}, "suffix"),
        ("generate", {"prompt": "a", "raw": True}, "raw"),
        ("generate", {"prompt": "a", "options": {"temperature": "hot"}}, "options.temperature"),
        ("generate", {"prompt": "a", "options": {"mirostat": 2}}, "mirostat"),
        ("pull", {}, "no such route"),
        ("show", {"model": ""}, "model"),
    ],
)
def test_errors_have_ollamas_shape(live, path, fields, said):
    """Its clients show `error` as it is: OpenAI's object would show as [object Object]."""
    reply = live.http.post(f"/api/{path}", json={"model": NAME, **fields})
    assert reply.status_code == (404 if path == "pull" else 400)
    assert isinstance(reply.json()["error"], str)
    assert said in reply.json()["error"]


def test_the_guard_speaks_it_too(demo):
    """Refusals before any route is found come in the same shape, and a full queue as 503."""
    server = Live(ServerSettings(port=0, api_keys=("k",), max_body_bytes=300), demo)
    try:
        refused = server.http.get("/api/tags")
        assert refused.status_code == 401
        assert isinstance(refused.json()["error"], str)
        key = {"authorization": "Bearer k"}
        large = server.http.post("/api/chat", content=b" " * 400, headers=key)
        assert (large.status_code, type(large.json()["error"])) == (413, str)
        server.service.num_open = 1000
        busy = server.http.post("/api/chat", content=b"{}", headers=key)
        assert (busy.status_code, type(busy.json()["error"])) == (503, str)
        server.service.num_open = 0
    finally:
        server.close()


def test_leaving_a_stream_cancels(live):
    body = {
        "model": NAME, "messages": [{"role": "user", "content": "Describe every animal."}],
        "options": {"num_predict": -1, "repeat_penalty": 1.5},
    }  # fmt: skip
    with live.http.stream("POST", "/api/chat", json=body) as reply:
        lines = reply.iter_lines()  # closes the connection when it is dropped
        next(lines)
    deadline = time.monotonic() + 5
    while live.service.runner.active or live.service.num_open:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_format_is_a_schema(client, picture):
    schema = {
        "type": "object", "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"], "additionalProperties": False,
    }  # fmt: skip
    options = {"temperature": 0, "num_predict": 64}
    reply = client.chat(NAME, about(picture), format=schema, options=options)
    assert json.loads(reply.message.content)["colour"] in ("red", "blue")
    parts = client.generate(
        NAME, QUESTION, images=[picture], format=schema, options=options, stream=True
    )
    assert set(json.loads("".join(part.response for part in parts))) == {"colour"}


def test_a_conversation_with_tools(client):
    """Ollama's own shape: arguments as an object, results under the tool's name."""
    tool = {
        "type": "function",
        "function": {"name": "look", "parameters": {"type": "object", "properties": {}}},
    }
    messages = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "tool_calls": [{"function": {"name": "look", "arguments": {}}}]},
        {"role": "tool", "tool_name": "look", "content": "A red square."},
    ]
    with_tools = client.chat(NAME, messages, tools=[tool], options=OPTIONS)
    without = client.chat(NAME, messages[:1], options=OPTIONS)
    assert with_tools.prompt_eval_count > without.prompt_eval_count + 100  # they are described


def test_calls_are_shown_whole():
    """Clients want arguments as an object; a part of JSON, or two calls in one, is none."""
    answer = AnswerState(0)
    generation = SimpleNamespace(
        tokenizer=None,
        timings=lambda: {"vision": 0.5, "prefill": 0.25, "decode": 0.125},
        usage=lambda: {"prompt_tokens": 7, "completion_tokens": 5},
        answers=[answer],
    )
    lines = Lines(NAME, True, False)
    events = [
        TextDelta(0, "Look:", (TokenInfo(1, 0.0),)),
        CallDelta(0, 0, "call_1", "zoom", ""),
        CallDelta(0, 0, None, None, '{"x": '),
        CallDelta(0, 0, None, None, "1}"),
        CallDelta(0, 1, "call_2", "stop", "{}"),
        End(0, "tool_calls", None),
    ]
    shown = b"".join(lines.show(generation, event) for event in events)
    parts = [json.loads(line) for line in shown.splitlines()]
    calls = [call for part in parts for call in part["message"].get("tool_calls", [])]
    assert [call["function"] for call in calls] == [
        {"name": "zoom", "arguments": {"x": 1}},
        {"name": "stop", "arguments": {}},
    ]
    assert (parts[-1]["done"], parts[-1]["done_reason"]) == (True, "stop")
    assert parts[-1]["prompt_eval_duration"] == 750_000_000
    cut = Lines(NAME, True, False)
    cut.show(generation, CallDelta(0, 0, "call_1", "zoom", '{"x": '))
    [last] = cut.show(generation, End(0, "length", None)).splitlines()
    assert json.loads(last)["done_reason"] == "length"
