"""POST /v1/responses through OpenAI's own client, against a live server."""

import asyncio
import json
import time
from dataclasses import replace
from typing import Any

import openai
import pytest
from live_server import NAME, Live, data_url, scene
from openai_shapes import check_event, check_reply

from qwen25vl.serving.responses.translation import as_chat
from qwen25vl.serving.responses.wire import ResponsesRequest

QUESTION = "What colour is the square?"


@pytest.fixture(scope="module")
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def about(picture) -> list[dict[str, Any]]:
    parts = [{"type": "input_image", "image_url": data_url(picture), "detail": "auto"}]
    return [{"role": "user", "content": [*parts, {"type": "input_text", "text": QUESTION}]}]


def post(live: Live, **fields: Any) -> dict[str, Any]:
    body = {"model": NAME, "input": "Hello", "max_output_tokens": 16, "temperature": 0, **fields}
    reply = live.http.post("/v1/responses", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    check_reply(found)
    return found


def events_of(live: Live, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": NAME, "input": "Hello", "max_output_tokens": 16, "temperature": 0, **fields}
    with live.http.stream("POST", "/v1/responses", json={**body, "stream": True}) as reply:
        text = "".join(reply.iter_text())
    events = []
    for block in filter(None, text.split("\n\n")):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
        check_event(events[-1])
    assert [each["sequence_number"] for each in events] == list(range(len(events)))
    return events


def text_of(reply: dict[str, Any]) -> str:
    return "".join(part["text"] for item in reply["output"] for part in item["content"])


def test_the_answer_is_that_of_the_chat_route(live, client):
    """A translation that renders otherwise answers about another prompt."""
    picture = scene()
    expected = live.vlm.ask(QUESTION, images=[picture], max_new_tokens=24, system="Be short.")
    reply = client.responses.create(
        model=NAME, input=about(picture), instructions="Be short.", max_output_tokens=24,
        temperature=0, metadata={"a": "b"},
    )  # fmt: skip
    assert reply.output_text == expected.text
    assert reply.usage.input_tokens == expected.usage.prompt_tokens
    assert reply.usage.output_tokens == expected.usage.completion_tokens
    assert (reply.status, reply.error, reply.metadata) == ("completed", None, {"a": "b"})
    counted = client.responses.input_tokens.count(
        model=NAME, input=about(picture), instructions="Be short."
    )
    assert counted.input_tokens == reply.usage.input_tokens


def test_events_come_in_the_order_that_clients_rely_on(live):
    """Each opens, fills and closes what the one before it opened; the end has the whole."""
    whole = post(live, input=about(scene()))
    events = events_of(live, input=about(scene()))
    kinds = [each["type"].removeprefix("response.") for each in events]
    assert kinds[:4] == ["created", "in_progress", "output_item.added", "content_part.added"]
    assert kinds[-4:] == [
        *("output_text.done", "content_part.done", "output_item.done"),
        whole["status"],
    ]
    assert set(kinds[4:-4]) == {"output_text.delta"}
    deltas = [each["delta"] for each in events if each["type"].endswith(".delta")]
    assert "".join(deltas) == text_of(whole) == text_of(events[-1]["response"])
    assert len({each["response"]["id"] for each in events if "response" in each}) == 1
    assert events[2]["item"]["content"] == []
    assert events[3]["part"]["text"] == ""
    assert events[0]["response"]["usage"] is None
    assert events[-1]["response"]["usage"]["total_tokens"] == whole["usage"]["total_tokens"]


def test_the_helpers_of_the_client(live, client):
    """`responses.stream` raises for a response whose identity changes or whose items are not
    closed."""
    asked = {"model": NAME, "input": "Hello", "max_output_tokens": 40, "temperature": 0}
    with client.responses.stream(**asked, extra_body={"stop": ["."]}) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert kinds[-1] == "response.completed"
    whole = client.responses.create(**asked, extra_body={"stop": ["."]})
    assert final.output_text == whole.output_text

    async def ask() -> str:
        async with openai.AsyncOpenAI(
            base_url=f"{live.url}/v1", api_key="none", max_retries=0
        ) as own:
            events = await own.responses.create(**asked, stream=True)
            return "".join([e.delta async for e in events if e.type.endswith("text.delta")])

    assert asyncio.run(ask()).startswith(whole.output_text)


def test_a_cut_answer_is_incomplete(live, client):
    """Clients ask for more by this status; "completed" would hide that the text ends in the
    middle."""
    reply = client.responses.create(
        model=NAME, input="Hello", max_output_tokens=2, extra_body={"ignore_eos": True}
    )
    assert reply.status == "incomplete"
    assert reply.incomplete_details.reason == "max_output_tokens"
    assert reply.output[0].status == "incomplete"
    events = events_of(live, max_output_tokens=2, ignore_eos=True)
    assert events[-1]["type"] == "response.incomplete"
    assert events[-2]["item"]["status"] == "incomplete"


def test_logprobs_of_a_response(live):
    """Every token has its entry, also those whose letters are held back."""
    fields = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    whole = post(live, **fields)
    logprobs = whole["output"][0]["content"][0]["logprobs"]
    assert len(logprobs) == whole["usage"]["output_tokens"]
    assert all(len(each["top_logprobs"]) == 2 for each in logprobs)
    events = events_of(live, **fields)
    done = next(each for each in events if each["type"] == "response.output_text.done")
    assert len(done["logprobs"]) == len(logprobs)
    assert post(live)["output"][0]["content"][0]["logprobs"] == []


def test_a_conversation_goes_on_by_its_id(live, client):
    """The model must see what was said, pictures included, and instructions only once."""
    picture = scene("green")
    asked = {"model": NAME, "max_output_tokens": 24, "temperature": 0}
    first = client.responses.create(**asked, input=about(picture), instructions="Be short.")
    second = client.responses.create(
        **asked, input="And what shape has it?", previous_response_id=first.id
    )
    assert second.previous_response_id == first.id
    messages = [
        *about(picture),
        {"role": "assistant", "content": first.output_text},
        {"role": "user", "content": "And what shape has it?"},
    ]
    whole = client.responses.create(**asked, input=messages)
    assert second.usage.input_tokens == whole.usage.input_tokens
    assert second.output_text == whole.output_text
    assert second.usage.input_tokens_details.cached_tokens >= 0
    third = client.responses.create(**asked, input="Sure?", previous_response_id=second.id)
    listed = client.responses.input_items.list(third.id, order="asc", limit=2)
    assert [item.id for item in listed] == [
        item.id for item in client.responses.input_items.list(third.id, order="asc")
    ]  # the client follows the pages
    items = list(listed)
    assert len(items) == 5
    assert items[0].content[0].image_url.startswith("data:image/png;base64,")
    assert items[1].content[0].text == first.output_text
    latest = next(iter(client.responses.input_items.list(third.id)))
    assert latest.content[0].text == "Sure?"
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(**asked, input="Sure?", previous_response_id=third.id)
    assert caught.value.code == "previous_response_not_found"
    assert caught.value.param == "previous_response_id"


def test_kept_responses_are_read_and_deleted(live, client):
    """What was sent is what is read again; what is not stored is nowhere."""
    made = client.responses.create(model=NAME, input="Hello", max_output_tokens=16)
    assert client.responses.retrieve(made.id).to_dict() == made.to_dict()
    check_reply(live.http.get(f"/v1/responses/{made.id}").json())
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.cancel(made.id)
    client.responses.delete(made.id)
    for call in (client.responses.retrieve, client.responses.delete, client.responses.cancel):
        with pytest.raises(openai.NotFoundError):
            call(made.id)
    hidden = client.responses.create(model=NAME, input="Hello", max_output_tokens=16, store=False)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(hidden.id)
    events = events_of(live, store=False)
    name = events[0]["response"]["id"]
    assert live.http.get(f"/v1/responses/{name}").status_code == 404
    events = events_of(live)
    name = events[0]["response"]["id"]
    assert live.http.get(f"/v1/responses/{name}").json() == events[-1]["response"]


def test_results_of_calls_are_read(live):
    """Calls and their results are items of their own; what was said and called at once is one
    message, and a result may hold a picture."""
    items = [
        {"role": "user", "content": "Look."},
        {"type": "reasoning", "id": "rs_1", "summary": []},
        {"role": "assistant", "content": "I look."},
        {"type": "function_call", "call_id": "call_1", "name": "look", "arguments": '{"at": 1}'},
        {"type": "function_call", "call_id": "call_2", "name": "look", "arguments": "{}"},
        {
            "type": "function_call_output",
            "call_id": "call_1",
            "output": [{"type": "input_image", "image_url": data_url(scene())}],
        },
        {"type": "function_call_output", "call_id": "call_2", "output": "nothing"},
    ]
    found = post(live, input=items)
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "Look."}]},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"function": {"name": "look", "arguments": {"at": 1}}},
                {"function": {"name": "look", "arguments": {}}},
            ],
        },
        {
            "role": "tool",
            "content": [{"type": "image_url", "image_url": {"url": data_url(scene())}}],
        },
        {"role": "tool", "content": "nothing"},
    ]
    rendered = live.http.post("/v1/chat/completions/render", json={"messages": messages}).json()
    assert found["usage"]["input_tokens"] == rendered["count"]
    listed = live.http.get(f"/v1/responses/{found['id']}/input_items?order=asc&limit=3").json()
    assert [item["type"] for item in listed["data"]] == ["message", "reasoning", "message"]
    assert listed["has_more"] is True


def test_tools_are_given_in_the_shape_of_the_chat_route(live):
    """A flat function that reaches the template as it is shows the model another format."""
    function = {"name": "look", "description": "Look.", "parameters": {"type": "object"}}
    tools = [{"type": "function", **function}, {"type": "function", "name": "other"}]
    found = post(live, tools=tools, tool_choice="none")
    assert found["tools"][1] == {
        "type": "function", "name": "other", "parameters": None, "strict": None,
    }  # fmt: skip
    count = "/v1/responses/input_tokens"
    body = {"input": "Hello", "tools": tools}
    every = live.http.post(count, json=body).json()["input_tokens"]
    only = {
        "type": "allowed_tools",
        "mode": "auto",
        "tools": [{"type": "function", "name": "look"}],
    }
    one = live.http.post(count, json={**body, "tool_choice": only}).json()["input_tokens"]
    chat = {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]}
    chat["tools"] = [{"type": "function", "function": function}]
    assert one == live.http.post("/tokenize", json=chat).json()["count"]
    assert every > one
    asked = ResponsesRequest(input="Hello", tools=tools)
    chat = as_chat(asked, [])
    assert chat.tools[0] == {"type": "function", "function": function}
    assert chat.tools[1] == {"type": "function", "function": {"name": "other"}}
    asked.tool_choice = {"type": "function", "name": "look"}
    assert as_chat(asked, []).tool_choice == {"type": "function", "function": {"name": "look"}}
    allowed = [{"type": "function", "name": "look"}]
    asked.tool_choice = {"type": "allowed_tools", "mode": "required", "tools": allowed}
    chat = as_chat(asked, [])
    assert [tool["function"]["name"] for tool in chat.tools] == ["look"]
    assert chat.tool_choice == "required"


def test_the_format_of_the_text_is_that_of_the_chat_route():
    """A schema at the wrong place would be ignored, and the text be of any form."""
    inner = {"name": "answer", "schema": {"type": "object"}, "strict": True}
    body = ResponsesRequest(input="Hello", text={"format": {"type": "json_schema", **inner}})
    assert as_chat(body, []).response_format == {"type": "json_schema", "json_schema": inner}
    body = ResponsesRequest(input="Hello", text={"format": {"type": "text"}, "verbosity": "low"})
    assert as_chat(body, []).response_format is None
    body = ResponsesRequest(input="Hello", text={"format": {"type": "json_object"}})
    assert as_chat(body, []).response_format == {"type": "json_object"}


def test_old_turns_are_dropped_only_if_asked_for(live, monkeypatch):
    """OpenAI refuses a conversation that is too long unless truncation is "auto"."""
    settings = replace(live.service.settings, max_model_len=400)
    monkeypatch.setattr(live.service, "settings", settings)
    turn = [{"role": "user", "content": "word " * 20}, {"role": "assistant", "content": "Yes."}]
    start, end = {"role": "developer", "content": "Be short."}, {"role": "user", "content": "Hello"}
    body = {"model": NAME, "input": [start, *turn * 9, end], "max_output_tokens": 16}
    refused = live.http.post("/v1/responses", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "context_length_exceeded"
    assert refused.json()["error"]["param"] == "input"
    cut = post(live, **{**body, "truncation": "auto"})["usage"]["input_tokens"]
    count = "/v1/responses/input_tokens"
    sizes = [
        live.http.post(count, json={"input": [start, *turn * number, end]}).json()["input_tokens"]
        for number in range(10)
    ]
    assert sizes[2] < cut == max(size for size in sizes if size <= 400 - 16)
    whole = post(live, input=[start, *turn, end], truncation="auto")
    assert whole["usage"]["input_tokens"] == sizes[1]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": None}, "input"),
        ({"input": []}, "input"),
        ({"input": 3}, "input"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type"),
        ({"input": [{"content": "x"}]}, "input[0].type"),
        ({"input": [{"type": "function_call_output"}]}, "input[0].output"),
        (
            {
                "instructions": "x",
                "input": [{"role": "user", "content": [{"type": "input_audio"}]}],
            },
            "input[0].content[0].type",
        ),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input[0].content[0].image_url",
        ),
        ({"background": True}, "background"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"n": 2}, "n"),
        ({"metadata": {"a": 1}}, "metadata.a"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"truncation": "maybe"}, "truncation"),
        ({"temperature": 3}, "temperature"),
    ],
)
def test_what_is_wrong_with_a_response_is_named(live, fields, param):
    """Before the start an error has a status of its own, streamed or not."""
    for streams in (False, True):
        body = {"model": NAME, "input": "Hello", **fields, "stream": streams}
        reply = live.http.post("/v1/responses", json=body)
        assert reply.status_code == 400, reply.text
        assert reply.json()["error"]["param"] == param
    assert not live.service.runner.active


def test_unknown_models_and_ids_are_404(live, client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.responses.create(model="gpt-5", input="Hello")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.create(model=NAME, input="Hello", previous_response_id="resp_x")
    assert live.http.get("/v1/responses/resp_x/input_items").status_code == 404
    made = post(live)["id"]
    for query in ("limit=0", "limit=101", "limit=x", "order=up", "after=x"):
        found = live.http.get(f"/v1/responses/{made}/input_items?{query}")
        assert found.json()["error"]["param"] == query.partition("=")[0]
    assert live.http.put("/v1/responses").status_code == 405


def test_what_fails_after_the_start_is_told_in_the_stream(live, monkeypatch):
    """A cut connection looks like the end of an answer."""
    from qwen25vl.serving.generation import Generation

    async def fail(*_: object):
        yield
        raise RuntimeError("secret")

    monkeypatch.setattr(Generation, "events", fail)
    monkeypatch.setattr("qwen25vl.serving.responses.output.Output.take", lambda *_: [])
    events = events_of(live)
    failed = events[-1]
    assert failed["type"] == "response.failed"
    assert failed["response"]["status"] == "failed"
    assert failed["response"]["error"]["code"] == "server_error"
    assert "secret" not in json.dumps(failed)
    monkeypatch.undo()
    deadline = time.monotonic() + 5
    while live.service.runner.active:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_leaving_a_response_cancels_it(live):
    """A closed connection is the stop button, and what was cut off is not kept."""
    body = {
        "model": NAME, "input": "Hello", "stream": True, "ignore_eos": True,
        "max_output_tokens": 4000,
    }  # fmt: skip
    with live.http.stream("POST", "/v1/responses", json=body) as reply:
        lines = reply.iter_lines()
        next(lines)
        name = json.loads(next(lines).removeprefix("data: "))["response"]["id"]
        assert live.service.runner.active
    deadline = time.monotonic() + 5
    runner = live.service.runner
    while runner.active or live.service.num_open or runner.engine.scheduler.running:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert live.http.get(f"/v1/responses/{name}").status_code == 404


def test_the_prompt_and_the_tokenizer_can_be_looked_at(live):
    """lm-evaluation-harness needs eos_token and fills the template itself; a prompt that is shown
    must be the one that is read."""
    info = live.http.get("/tokenizer_info").json()
    assert info["eos_token"] == "<|im_end|>"
    assert "{%" in info["chat_template"]
    messages = [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": data_url(scene())}},
        {"type": "text", "text": QUESTION},
    ]}]  # fmt: skip
    found = live.http.post("/v1/chat/completions/render", json={"messages": messages}).json()
    assert found["prompt"].count("<|image_pad|>") == 1
    assert found["prompt"].endswith(f"{QUESTION}<|im_end|>\n<|im_start|>assistant\n")
    counted = live.http.post("/tokenize", json={"messages": messages}).json()
    assert found["prompt_token_ids"] == counted["tokens"]
    assert found["count"] == len(found["prompt_token_ids"])
