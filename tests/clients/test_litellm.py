"""LiteLLM, through its providers hosted_vllm, ollama_chat and anthropic."""

import json
import os

import pytest
from live_server import NAME

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it fetches a price list
litellm = pytest.importorskip("litellm", reason="litellm is missing")


@pytest.fixture(scope="module")
def asked(live, parts) -> dict:
    return {
        "messages": [{"role": "user", "content": parts}], "temperature": 0, "max_tokens": 24,
        "api_key": "none", "num_retries": 0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("provider", "path"), [("hosted_vllm", "/v1"), ("openai", "/v1"), ("ollama_chat", ""),
                           ("anthropic", "")]
)  # fmt: skip
def test_whole_and_streamed(live, asked, expected, provider, path):
    """The same question through three APIs has the same answer."""
    asked = {**asked, "model": f"{provider}/{NAME}", "api_base": live.url + path}
    reply = litellm.completion(**asked)
    assert reply.choices[0].message.content == expected
    assert reply.choices[0].finish_reason == "stop"
    assert reply.usage.total_tokens > 0
    chunks = litellm.completion(**asked, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected


def test_a_long_prompt_is_recognised(live, asked):
    """Routers change the model on this error only."""
    long = [{"role": "user", "content": "word " * 9000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(
            **{**asked, "messages": long}, model=f"hosted_vllm/{NAME}", api_base=f"{live.url}/v1"
        )


@pytest.mark.parametrize(("provider", "path"), [("hosted_vllm", "/v1"), ("anthropic", "")])
def test_a_forced_call(live, asked, provider, path):
    parameters = {
        "type": "object", "properties": {"is_square": {"type": "boolean"}},
        "required": ["is_square"],
    }  # fmt: skip
    tool = {"type": "function", "function": {"name": "report", "parameters": parameters}}
    reply = litellm.completion(
        **{**asked, "max_tokens": 256}, model=f"{provider}/{NAME}", api_base=live.url + path,
        tools=[tool], tool_choice="required",
    )  # fmt: skip
    [call] = reply.choices[0].message.tool_calls
    assert call.function.name == "report"
    assert set(json.loads(call.function.arguments)) == {"is_square"}
    assert reply.choices[0].finish_reason == "tool_calls"
