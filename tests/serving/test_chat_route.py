"""POST /v1/chat/completions through OpenAI's own client, against a live server."""

import asyncio
import threading
import time

import openai
import pytest
from live_server import NAME, Live, data_url, scene

from qwen25vl.serving.settings import ServerSettings


@pytest.fixture(scope="module")
def client(live: Live) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)


def about(picture, question="What colour is the square?"):
    parts = [{"type": "image_url", "image_url": {"url": data_url(picture)}}]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": question}]}]


def test_the_answer_is_that_of_ask_to_the_last_token(live, client):
    """A server that renders or prepares differently answers about another prompt."""
    picture = scene()
    expected = live.vlm.ask("What colour is the square?", images=[picture], max_new_tokens=24)
    reply = client.chat.completions.create(
        model=NAME, messages=about(picture), max_tokens=24, temperature=0
    )
    assert reply.choices[0].message.content == expected.text
    assert reply.usage.prompt_tokens == expected.usage.prompt_tokens
    assert reply.usage.completion_tokens == expected.usage.completion_tokens
    assert reply.usage.prompt_tokens_details.image_tokens == expected.usage.visual_tokens


def test_a_stream_joins_to_the_whole_answer(client):
    """Clients join deltas: the role once, one end for each choice, usage last and only if asked."""
    asked = {"model": NAME, "messages": about(scene("blue")), "max_tokens": 24, "temperature": 0}
    whole = client.chat.completions.create(**asked)
    chunks = list(
        client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    texts = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(texts) == whole.choices[0].message.content
    roles = [chunk.choices[0].delta.role for chunk in chunks if chunk.choices]
    assert roles[0] == "assistant"
    assert not any(roles[1:])
    ends = [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices]
    assert [end for end in ends if end] == [whole.choices[0].finish_reason]
    assert not chunks[-1].choices
    assert chunks[-1].usage.total_tokens == whole.usage.total_tokens
    assert len({chunk.id for chunk in chunks}) == 1
    unasked = list(client.chat.completions.create(**asked, stream=True))
    assert all(chunk.choices for chunk in unasked)


def test_several_answers_come_with_their_choices_in_order(client):
    """The client's helper fails on a choice 1 before choice 0."""
    asked = {"model": NAME, "messages": about(scene()), "max_tokens": 6, "n": 3, "seed": 5}
    drawn = client.chat.completions.create(**asked, temperature=1.5)
    assert [choice.index for choice in drawn.choices] == [0, 1, 2]
    again = client.chat.completions.create(**asked, temperature=1.5)
    assert [c.message.content for c in drawn.choices] == [c.message.content for c in again.choices]
    chunks = list(client.chat.completions.create(**asked, temperature=1.5, stream=True))
    assert [chunk.choices[0].index for chunk in chunks[:3]] == [0, 1, 2]
    greedy = client.chat.completions.create(**asked, temperature=0)
    assert len({choice.message.content for choice in greedy.choices}) == 1


def test_logprobs_cover_every_token(client):
    """A token whose letters are held back still has its entry."""
    reply = client.chat.completions.create(
        model=NAME, messages=about(scene()), max_tokens=8, temperature=0, logprobs=True,
        top_logprobs=3,
    )  # fmt: skip
    content = reply.choices[0].logprobs.content
    assert len(content) == reply.usage.completion_tokens
    assert all(len(each.top_logprobs) == 3 for each in content)
    assert all(each.top_logprobs[0].logprob == each.logprob for each in content)
    text = b"".join(bytes(each.bytes) for each in content).decode()
    assert text.startswith(reply.choices[0].message.content)


def test_stop_strings_and_their_reason(client):
    """vLLM's `stop_reason` says which of them was met."""
    asked = {"model": NAME, "messages": about(scene()), "max_tokens": 24, "temperature": 0}
    text = client.chat.completions.create(**asked).choices[0].message.content
    word = text.split()[-1]
    reply = client.chat.completions.create(**asked, stop=[word])
    assert reply.choices[0].finish_reason == "stop"
    assert reply.choices[0].stop_reason == word
    assert word not in reply.choices[0].message.content
    shown = client.chat.completions.create(
        **asked, stop=[word], extra_body={"include_stop_str_in_output": True}
    )
    assert shown.choices[0].message.content.endswith(word)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"n": 0}, "n"),
        ({"n": 100}, "n"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"stop_token_ids": [999999]}, "stop_token_ids"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"chat_template": "x"}, "chat_template"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
    ],
)
def test_what_is_wrong_is_named(live, fields, param):
    """Clients show message and param; a 422 or a bare text would show nothing."""
    reply = live.ask(**fields)
    assert reply.status_code == 400
    error = reply.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert live.ask(temperature=0).status_code == 200


def test_unknown_model_is_404_with_its_code(client):
    with pytest.raises(openai.NotFoundError) as caught:
        client.chat.completions.create(model="gpt-5", messages=about(scene()))
    assert caught.value.code == "model_not_found"


def test_a_long_prompt_is_refused_in_the_words_that_clients_know(client):
    """LangChain and others shorten a conversation only by this code or sentence."""
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(
            model=NAME, messages=[{"role": "user", "content": "word " * 9000}]
        )
    assert caught.value.code == "context_length_exceeded"
    assert "maximum context length is" in caught.value.message


def test_lengths_beyond_the_room_are_clamped(live):
    """UI-TARS sends 65535, MinerU both names at once."""
    reply = live.ask(max_tokens=65535, max_completion_tokens=3, temperature=0)
    assert reply.json()["usage"]["completion_tokens"] <= 3
    assert live.ask(max_tokens=65535, temperature=0).status_code == 200


def test_leaving_cancels(live):
    """A closed connection is the stop button; what goes on writing for nobody blocks the others."""
    body = {
        "model": NAME, "messages": [{"role": "user", "content": "Hello"}], "stream": True,
        "ignore_eos": True, "max_tokens": 4000, "temperature": 2, "seed": 1,
    }  # fmt: skip
    with live.http.stream("POST", "/v1/chat/completions", json=body) as reply:
        lines = reply.iter_lines()  # closes the connection when it is dropped
        assert '"role":"assistant"' in next(lines)
        assert live.service.runner.active
    deadline = time.monotonic() + 5
    runner = live.service.runner
    while runner.active or live.service.num_open or runner.engine.scheduler.running:
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_many_at_once_answer_as_alone(live):
    """An answer must not depend on its company."""
    colours = ["red", "green", "blue", "yellow", "black", "orange"]
    client = openai.AsyncOpenAI(base_url=f"{live.url}/v1", api_key="none", max_retries=0)
    expected = [
        live.vlm.ask("What colour is the square?", images=[scene(c)], max_new_tokens=20).text
        for c in colours
    ]

    async def ask(colour):
        reply = await client.chat.completions.create(
            model=NAME, messages=about(scene(colour)), max_tokens=20, temperature=0
        )
        return reply.choices[0].message.content

    async def ask_all():
        return await asyncio.gather(*map(ask, colours))

    assert asyncio.run(ask_all()) == expected


def test_health_models_and_metrics(live):
    assert live.http.get("/health").json() == {"status": "ok"}
    assert live.http.get("/ready").status_code == 200
    listed = live.http.get("/v1/models").json()
    assert [model["id"] for model in listed["data"]] == [NAME]
    assert live.http.get(f"/v1/models/{NAME}").json()["max_model_len"] == 8192
    assert live.http.get("/v1/models/a/b").status_code == 404
    live.ask(temperature=0)
    text = live.http.get("/metrics").text
    assert f'vllm:prompt_tokens_total{{model_name="{NAME}"}}' in text
    assert live.http.get("/nowhere").json()["error"]["code"] == "not_found"
    assert live.http.get("/v1/chat/completions").status_code == 405


def test_tokenize_counts_pictures(live):
    picture = scene()
    found = live.http.post("/tokenize", json={"messages": about(picture)}).json()
    expected = live.vlm.ask("What colour is the square?", images=[picture], max_new_tokens=1)
    assert found["count"] == expected.usage.prompt_tokens == len(found["tokens"])
    text = live.http.post("/detokenize", json={"tokens": found["tokens"]}).json()["prompt"]
    assert text.endswith("<|im_start|>assistant\n")


def test_the_end_is_in_order(demo):
    """Running requests finish, new ones are told to come back, and open streams end with an
    error instead of a cut connection."""
    server = Live(ServerSettings(port=0, model_names=(NAME,), shutdown_seconds=0.5), demo)
    body = {
        "model": NAME, "messages": [{"role": "user", "content": "Hello"}], "stream": True,
        "ignore_eos": True, "max_tokens": 8000,
    }  # fmt: skip
    lines: list[str] = []
    begun = threading.Event()

    def read():
        with server.http.stream("POST", "/v1/chat/completions", json=body) as reply:
            for line in reply.iter_lines():
                lines.append(line)
                begun.set()

    reader = threading.Thread(target=read)
    reader.start()
    assert begun.wait(10)
    server.server.handle_exit(15, None)
    refused = server.ask()
    assert refused.status_code == 503
    assert refused.headers["retry-after"]
    reader.join(20)
    assert not reader.is_alive()
    assert '"code":"shutting_down"' in [line for line in lines if line][-1]
    server.thread.join(20)
    assert not server.thread.is_alive()
    server.http.close()
