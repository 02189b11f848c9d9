"""LlamaIndex' OpenAILike."""

import io

import pytest
from live_server import NAME, QUESTION, scene

llms = pytest.importorskip(
    "llama_index.llms.openai_like", reason="llama-index-llms-openai-like is missing"
)


@pytest.fixture(scope="module")
def messages():
    from llama_index.core.llms import ChatMessage, ImageBlock, TextBlock

    file = io.BytesIO()
    scene().save(file, "PNG")
    return [
        ChatMessage(
            role="user", blocks=[ImageBlock(image=file.getvalue()), TextBlock(text=QUESTION)]
        )
    ]


@pytest.fixture(scope="module")
def llm(live):
    return llms.OpenAILike(
        model=NAME, api_base=f"{live.url}/v1", api_key="none", is_chat_model=True, temperature=0,
        max_tokens=24, context_window=8192,
    )  # fmt: skip


def test_chat(llm, messages, expected):
    assert llm.chat(messages).message.content == expected


def test_stream_chat(llm, messages, expected):
    assert [part.message.content for part in llm.stream_chat(messages)][-1] == expected
