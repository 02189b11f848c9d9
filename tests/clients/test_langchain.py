"""langchain-openai's ChatOpenAI."""

import pytest
from live_server import NAME, QUESTION, data_url, scene

langchain_openai = pytest.importorskip("langchain_openai", reason="langchain-openai is missing")


@pytest.fixture(scope="module")
def chat(live):
    return langchain_openai.ChatOpenAI(
        base_url=f"{live.url}/v1", api_key="none", model=NAME, temperature=0, max_tokens=24,
        stream_usage=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def question(parts):
    from langchain_core.messages import HumanMessage

    return [HumanMessage(content=parts)]


def test_invoke(chat, question, expected):
    reply = chat.invoke(question)
    assert reply.content == expected
    assert reply.response_metadata["finish_reason"] == "stop"
    assert reply.usage_metadata["total_tokens"] > 0


def test_stream_with_usage(chat, question, expected):
    """The usage chunk has no choices: null there raises a TypeError in LangChain."""
    chunks = list(chat.stream(question))
    assert "".join(chunk.content for chunk in chunks) == expected
    assert sum(chunk.usage_metadata["output_tokens"] for chunk in chunks if chunk.usage_metadata)


def test_several_at_once(chat, question, expected):
    assert [reply.content for reply in chat.batch([question] * 3)] == [expected] * 3


def test_its_own_blocks(chat, expected):
    """LangChain's standard block of a picture."""
    from langchain_core.messages import HumanMessage

    data = data_url(scene()).partition(",")[2]
    block = {"type": "image", "base64": data, "mime_type": "image/png"}
    message = HumanMessage(content=[block, {"type": "text", "text": QUESTION}])
    assert chat.invoke([message]).content == expected


def test_a_long_prompt_is_recognised(chat):
    from langchain_core.exceptions import ContextOverflowError

    with pytest.raises(ContextOverflowError):
        chat.invoke("word " * 9000)


def test_structured_output(chat, question):
    """A strict schema in `response_format`, and a forced call."""
    from pydantic import BaseModel

    class Seen(BaseModel):
        is_square: bool

    longer = chat.model_copy(update={"max_tokens": 256})
    for method in ("json_schema", "function_calling"):
        made = longer.with_structured_output(Seen, method=method)
        assert isinstance(made.invoke(question), Seen)
