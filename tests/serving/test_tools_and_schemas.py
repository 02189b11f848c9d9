"""Tool calls and answers under a schema, through OpenAI's client, with a model that knows neither:
whatever it wants to say, what comes out must be right."""

import json

import openai
import pytest
from live_server import NAME, Live
from pydantic import BaseModel

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Looks it up.",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "maxLength": 12},
                    "days": {"type": "integer", "minimum": 1, "maximum": 9},
                },
                "required": ["city", "days"],
                "additionalProperties": False,
            },
        },
    }
    for name in ("weather", "tides")
]
ASKED = {"model": NAME, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 200}


class Row(BaseModel):
    name: str
    count: int


@pytest.fixture(scope="module")
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def check(call, names=("weather", "tides")):
    assert call.function.name in names
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "days"}
    assert 1 <= arguments["days"] <= 9


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_required_call_is_made_and_follows_its_schema(client, seed):
    reply = client.chat.completions.create(
        **ASKED, tools=TOOLS, tool_choice="required", parallel_tool_calls=False, seed=seed,
        temperature=1.0,
    )  # fmt: skip
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls"
    assert len(choice.message.tool_calls) == 1
    assert choice.message.content is None
    check(choice.message.tool_calls[0])


def test_a_named_call_ends_with_stop(client):
    """As OpenAI does it; some clients treat "tool_calls" there as an error."""
    named = {"type": "function", "function": {"name": "tides"}}
    reply = client.chat.completions.create(**ASKED, tools=TOOLS, tool_choice=named)
    assert reply.choices[0].finish_reason == "stop"
    check(reply.choices[0].message.tool_calls[0], ("tides",))


def test_a_streamed_call_joins_to_a_whole_one(client):
    """Clients join the parts of a call as texts: an id that is sent twice would be doubled."""
    asked = {**ASKED, "tools": TOOLS, "tool_choice": "required", "parallel_tool_calls": False}
    whole = client.chat.completions.create(**asked, temperature=0).choices[0].message.tool_calls[0]
    ids, names, arguments = [], [], ""
    for chunk in client.chat.completions.create(**asked, temperature=0, stream=True):
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.index == 0
            ids += [call.id] if call.id else []
            names += [call.function.name] if call.function.name else []
            arguments += call.function.arguments
        reason = chunk.choices[0].finish_reason
    assert len(ids) == 1
    assert names == [whole.function.name]
    assert arguments == whole.function.arguments
    assert reason == "tool_calls"


def test_a_conversation_with_results_goes_on(client):
    """What was called and what came back are part of the prompt, pictures included."""
    called = {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {
                "id": "call_1", "type": "function",
                "function": {"name": "weather", "arguments": '{"city": "Bonn", "days": 1}'},
            }
        ],
    }  # fmt: skip
    result = {"role": "tool", "tool_call_id": "call_1", "content": "rain"}
    reply = client.chat.completions.create(
        model=NAME, messages=[*ASKED["messages"], called, result], tools=TOOLS, max_tokens=8,
        tool_choice="none",
    )  # fmt: skip
    assert reply.choices[0].finish_reason in ("stop", "length")
    assert not reply.choices[0].message.tool_calls


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_json_object_is_one(client, seed):
    reply = client.chat.completions.create(
        **ASKED, response_format={"type": "json_object"}, seed=seed, temperature=1.2
    )
    if reply.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(reply.choices[0].message.content), dict)


def test_parse_gives_the_class_that_was_asked_for(client):
    schema = {"max_tokens": 400, "seed": 4, "temperature": 1.0, "frequency_penalty": 0.3}
    reply = client.chat.completions.parse(**{**ASKED, **schema}, response_format=Row)
    assert isinstance(reply.choices[0].message.parsed, Row)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("guided_choice", ["yes", "no"], ("yes", "no")),
        ("structured_outputs", {"choice": ["yes", "no"]}, ("yes", "no")),
        ("guided_regex", "[ab]c", ("ac", "bc")),
        ("grammar", 'root ::= "x" | "y"', ("x", "y")),
    ],
)
def test_the_names_of_peers_are_honoured(client, field, value, expected):
    """vLLM once ignored a field that it had renamed: users took free text for constrained."""
    reply = client.chat.completions.create(**ASKED, extra_body={field: value})
    assert reply.choices[0].message.content in expected
    assert reply.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "fields",
    [
        {"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}},
        {"response_format": {"type": "yaml"}},
        {"guided_regex": "(a"},
        {"guided_regex": "a", "guided_choice": ["b"]},
        {"structured_outputs": {"structural_tag": {}}},
        {"tools": [{"type": "function"}]},
        {"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tool_choice": "required", "tools": []},
    ],
)
def test_what_cannot_be_followed_is_refused(live, fields):
    reply = live.ask(**fields)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"]


@pytest.mark.parametrize("stop", ['"', "\n", "</tool_call>", "}\n</tool"])
def test_no_stop_string_cuts_a_call(live, stop):
    """Agents send a stop string with their tools; one that JSON has left half a call."""
    tool = {"type": "function", "function": {"name": "f", "parameters": {"enum": [{}]}}}
    choice = live.ask("Call f", tools=[tool], tool_choice="required", stop=[stop], max_tokens=200)
    call = choice.json()["choices"][0]["message"]["tool_calls"][0]["function"]
    assert (call["name"], call["arguments"]) == ("f", "{}")
