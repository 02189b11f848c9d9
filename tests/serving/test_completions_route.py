"""POST /v1/completions, as OpenAI's client, lm-evaluation-harness and raw readers use it."""

import asyncio
import json
import time
from typing import Any

import openai
import pytest
from live_server import NAME, Live
from openai_shapes import check_reply

PROMPT = "<|im_start|>user\nDescribe the picture.<|im_end|>\n<|im_start|>assistant\n"


@pytest.fixture(scope="module")
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def post(live: Live, **fields: Any) -> dict[str, Any]:
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, **fields}
    reply = live.http.post("/v1/completions", json=body)
    assert reply.status_code == 200, reply.text
    found: dict[str, Any] = reply.json()
    check_reply(found)
    return found


def chunks_of(live: Live, **fields: Any) -> list[dict[str, Any]]:
    body = {"model": NAME, "prompt": PROMPT, "max_tokens": 8, "temperature": 0, "stream": True}
    with live.http.stream("POST", "/v1/completions", json={**body, **fields}) as reply:
        lines = [line for line in reply.iter_lines() if line.startswith("data: ")]
    assert lines.pop() == "data: [DONE]"
    chunks = [json.loads(line.removeprefix("data: ")) for line in lines]
    for chunk in chunks:
        check_reply(chunk)
    return chunks


def test_control_tokens_of_a_prompt_are_control_tokens(live, client):
    """Whoever writes the template himself gets the same answer as through the chat route."""
    reply = client.completions.create(model=NAME, prompt=PROMPT, max_tokens=12, temperature=0)
    messages = [{"role": "user", "content": "Describe the picture."}]
    given = live.http.post("/tokenize", json={"messages": messages}).json()["tokens"]
    by_ids = client.completions.create(model=NAME, prompt=given, max_tokens=12, temperature=0)
    chat = live.ask("Describe the picture.", max_tokens=12, temperature=0).json()
    expected = chat["choices"][0]["message"]["content"]
    assert by_ids.choices[0].text == expected
    assert by_ids.usage.prompt_tokens == len(given)
    own = live.http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    assert reply.usage.prompt_tokens == len(own)


def test_several_prompts_are_numbered_prompt_by_prompt(live):
    """Clients cut the list of choices into pieces of n; an order by arrival mixes prompts up."""
    prompts = [PROMPT, "red green", "A large cat"]
    alone = [post(live, prompt=prompt)["choices"][0]["text"] for prompt in prompts]
    found = post(live, prompt=prompts, n=2)
    assert [choice["index"] for choice in found["choices"]] == list(range(6))
    assert [choice["text"] for choice in found["choices"]] == [t for t in alone for _ in range(2)]
    ids = [live.http.post("/tokenize", json={"prompt": p}).json()["tokens"] for p in prompts]
    assert [choice["text"] for choice in post(live, prompt=ids)["choices"]] == alone
    assert found["usage"]["prompt_tokens"] == sum(map(len, ids))
    streamed = [""] * 6
    for chunk in chunks_of(live, prompt=prompts, n=2):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert streamed == [choice["text"] for choice in found["choices"]]


def test_what_lm_eval_asks_for(live):
    """It slices the lists by the length of its context, drops the one token that it had to ask
    for, and compares floats for equality to see whether the text is the greedy one."""
    context = live.http.post("/tokenize", json={"prompt": PROMPT}).json()["tokens"]
    written = post(live, prompt=context, max_tokens=6, return_token_ids=True)["choices"][0]
    ids = [*context, *written["token_ids"]]
    for length in (0, 1):
        found = post(live, prompt=ids, echo=True, max_tokens=length, logprobs=1, seed=1234)
        lists = found["choices"][0]["logprobs"]
        assert len(lists["tokens"]) == len(ids) + length
        assert lists["token_logprobs"][0] is None
        assert lists["top_logprobs"][0] is None
        stop = len(ids)
        own, best = lists["token_logprobs"][:stop], lists["top_logprobs"][:stop]
        greedy = [a == max(b.values()) for a, b in zip(own, best, strict=True) if a is not None]
        assert all(greedy[len(context) - 1 :])
        assert not all(greedy)
        assert found["usage"]["completion_tokens"] == length
        assert found["choices"][0]["finish_reason"] == "length"
    plain = post(live, prompt=context, max_tokens=6, logprobs=0)["choices"][0]["logprobs"]
    rated = post(live, prompt=ids, echo=True, max_tokens=0, logprobs=0)["choices"][0]["logprobs"]
    assert rated["token_logprobs"][len(context) :] == plain["token_logprobs"]


def test_offsets_name_the_place_in_the_text(live):
    """Tokens within a character, control tokens that the answer does not show, and the prompt that
    is sent back all shift what follows."""
    prompt = "<|im_start|>für 猫🙂 red"
    choice = post(live, prompt=prompt, echo=True, max_tokens=4, logprobs=2)["choices"][0]
    lists, text = choice["logprobs"], choice["text"]
    assert text.startswith(prompt)
    offsets = lists["text_offset"]
    assert offsets == sorted(offsets)
    assert offsets[0] == 0
    for token, start in zip(lists["tokens"], offsets, strict=True):
        shown = token if not token.startswith("bytes:") else ""
        assert text[start : start + len(shown)] in (shown, "")
    parts = [token for token in lists["tokens"] if token.startswith("bytes:\\x")]
    assert len(parts) >= 2
    alone = post(live, prompt=prompt, max_tokens=4, logprobs=2)["choices"][0]["logprobs"]
    assert alone["text_offset"][0] == 0
    assert [len(prompt) + start for start in alone["text_offset"]] == offsets[
        -len(alone["tokens"]) :
    ]


def test_a_stream_joins_to_the_whole(live):
    """Echo, log-probabilities and ids come in parts, once each; usage last and only if asked."""
    fields = {"echo": True, "logprobs": 3, "return_token_ids": True, "stop": ["zzz"]}
    whole = post(live, **fields)["choices"][0]
    chunks = chunks_of(live, **fields, stream_options={"include_usage": True})
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["total_tokens"] > 0
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    parts = [chunk["choices"][0] for chunk in chunks[:-1]]
    assert "".join(part["text"] for part in parts) == whole["text"]
    for name, expected in whole["logprobs"].items():
        joined = [each for part in parts if part["logprobs"] for each in part["logprobs"][name]]
        assert joined == expected, name
    assert [t for part in parts for t in part.get("token_ids", ())] == whole["token_ids"]
    ends = [part["finish_reason"] for part in parts if part["finish_reason"]]
    assert ends == [whole["finish_reason"]]
    quiet = chunks_of(live, echo=True, max_tokens=0)
    assert "".join(chunk["choices"][0]["text"] for chunk in quiet) == PROMPT
    assert quiet[-1]["choices"][0]["finish_reason"] == "length"


def test_prompt_logprobs_in_the_shape_of_vllm(live):
    """Both routes have them; ids are names there, and the first token has none."""
    choice = post(live, prompt_logprobs=2)["choices"][0]
    first, *others = choice["prompt_logprobs"]
    assert first is None
    for each in others:
        assert 2 <= len(each) <= 3
        assert all(found["rank"] >= 1 and found["logprob"] <= 0 for found in each.values())
        assert {1, 2} <= {found["rank"] for found in each.values()}
    reply = live.ask(temperature=0, prompt_logprobs=0).json()
    assert len(reply["prompt_logprobs"]) == reply["usage"]["prompt_tokens"]
    assert all(len(each) == 1 for each in reply["prompt_logprobs"][1:])
    assert reply["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert live.ask(stream=True, prompt_logprobs=1).json()["error"]["param"] == "prompt_logprobs"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt"),
        ({"prompt": ["a"] * 300}, "prompt"),
        ({"prompt": [10**8]}, "prompt"),
        ({"prompt": "<|vision_start|><|image_pad|><|vision_end|>"}, "prompt"),
        ({"prompt": "word " * 9000}, "prompt"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt_logprobs": -1}, "prompt_logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"model": "gpt-5"}, "model"),
    ],
)
def test_what_is_wrong_with_a_completion_is_named(live, fields, param):
    """One bad prompt among many must not leave the others running."""
    body = {"model": NAME, "prompt": PROMPT, **fields}
    for streams in (False, True):
        reply = live.http.post("/v1/completions", json={**body, "stream": streams})
        assert reply.status_code == (404 if param == "model" else 400)
        assert reply.json()["error"]["param"] == param
    assert not live.service.runner.active


def test_leaving_a_completion_cancels_all_prompts(live):
    """Several jobs belong to one connection."""
    body = {
        "model": NAME, "prompt": [PROMPT, "red", "blue"], "max_tokens": 4000, "stream": True,
        "ignore_eos": True,
    }  # fmt: skip
    with live.http.stream("POST", "/v1/completions", json=body) as reply:
        lines = reply.iter_lines()  # closes the connection when it is dropped
        next(lines)
        assert len(live.service.runner.active) == 3
    deadline = time.monotonic() + 5
    runner = live.service.runner
    while runner.active or live.service.num_open or runner.engine.scheduler.running:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_async_client_streams(live):
    """The async client reads on after [DONE]."""

    async def ask() -> str:
        async with openai.AsyncOpenAI(
            base_url=f"{live.url}/v1", api_key="none", max_retries=0
        ) as client:
            parts = await client.completions.create(
                model=NAME, prompt=PROMPT, max_tokens=8, temperature=0, stream=True
            )
            return "".join([part.choices[0].text async for part in parts])

    assert asyncio.run(ask()) == post(live)["choices"][0]["text"]
