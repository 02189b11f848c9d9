"""openai-python's own helpers, which join chunks themselves."""

import asyncio
from typing import Literal

import openai
import pytest
from live_server import NAME, Live
from openai.lib.streaming.chat import ContentDoneEvent
from pydantic import BaseModel


class Seen(BaseModel):
    """What the model is made to answer, whatever it sees."""

    colour: Literal["red", "green", "blue"]
    is_square: bool | None


@pytest.fixture(scope="module")
def asked(parts) -> dict:
    messages = [{"role": "user", "content": parts}]
    return {"model": NAME, "messages": messages, "max_tokens": 24, "temperature": 0}


@pytest.fixture(scope="module")
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def test_the_stream_helper_joins_chunks(client, asked, expected):
    """It raises on a role in every chunk, and loses a usage that is not last."""
    with client.chat.completions.stream(**asked, stream_options={"include_usage": True}) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    assert final.choices[0].message.content == expected
    assert final.choices[0].message.role == "assistant"
    assert final.usage.total_tokens == final.usage.prompt_tokens + final.usage.completion_tokens
    assert [event.content for event in events if isinstance(event, ContentDoneEvent)] == [expected]


def test_the_async_client_reads_to_the_end(live, asked, expected):
    """On HTTP/1.1 it reads on after [DONE]: a body that does not end would hang it."""

    async def ask() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none") as client:
            whole = await client.chat.completions.create(**asked)
            chunks = [c async for c in await client.chat.completions.create(**asked, stream=True)]
        joined = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        return [whole.choices[0].message.content, joined]

    assert asyncio.run(asyncio.wait_for(ask(), 60)) == [expected] * 2


def test_models_and_raw_replies(client, asked):
    assert [model.id for model in client.models.list()] == [NAME]
    assert client.models.retrieve(NAME).id == NAME
    raw = client.chat.completions.with_raw_response.create(**asked)
    assert raw.headers["x-request-id"]
    assert raw.parse()._request_id == raw.headers["x-request-id"]


def test_a_wrong_field_raises_what_users_catch(client, asked):
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(**{**asked, "temperature": 3})
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")


def test_parse_gives_an_object(client, asked):
    """The helper sends a strict schema, and reads the answer with the class it came from."""
    asked = {**asked, "max_tokens": 64, "response_format": Seen}
    reply = client.chat.completions.parse(**asked)
    assert isinstance(reply.choices[0].message.parsed, Seen)
    with client.chat.completions.stream(**asked) as stream:
        final = stream.get_final_completion()
    assert final.choices[0].message.parsed == reply.choices[0].message.parsed
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(**{**asked, "max_tokens": 4})


def test_a_call_is_joined_once(client, asked):
    """An id or a name that is sent twice becomes "call_1call_1"."""
    tool = openai.pydantic_function_tool(Seen, name="report")
    asked = {**asked, "max_tokens": 256, "tools": [tool], "tool_choice": "required"}
    whole = client.chat.completions.parse(**asked).choices[0]
    [call] = whole.message.tool_calls
    assert (whole.finish_reason, call.function.name) == ("tool_calls", "report")
    assert isinstance(call.function.parsed_arguments, Seen)
    with client.chat.completions.stream(**asked) as stream:
        [joined] = stream.get_final_completion().choices[0].message.tool_calls
    assert joined.function.name == "report"
    assert joined.function.parsed_arguments == call.function.parsed_arguments
    messages = [
        *asked["messages"],
        whole.message,
        {"role": "tool", "tool_call_id": call.id, "content": "Noted."},
    ]
    assert client.chat.completions.create(**{**asked, "messages": messages, "tool_choice": "none"})
