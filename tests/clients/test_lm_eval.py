"""lm-evaluation-harness: likelihoods from echoed prompts, and generation, both without a tokenizer
of its own."""

import pytest
import torch
from live_server import NAME

models = pytest.importorskip("lm_eval.models.openai_completions", reason="lm-eval is missing")
PAIRS = [("Is there a dog?", " Yes."), ("Is there a dog?", " No."), ("What is", " red and round?")]


def instances(kind: str, arguments: list[tuple]) -> list:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


def log_likelihood(vlm, context: str, continuation: str) -> float:
    """Of the continuation after the context, from the logits of one pass."""
    encode = vlm.processor.tokenizer.encode
    before, ids = len(encode(context)), torch.tensor([encode(context + continuation)])
    with torch.inference_mode():
        scores = vlm.model(input_ids=ids).logits[0].float().log_softmax(-1)
    return sum(float(scores[place - 1, ids[0, place]]) for place in range(before, ids.shape[1]))


@pytest.fixture(scope="module")
def completions(live):
    return models.LocalCompletionsAPI(base_url=f"{live.url}/v1/completions", model=NAME)


def test_likelihoods(live, completions):
    """A first token with a number, or a text_offset out of order, would shift them all."""
    found = completions.loglikelihood(instances("loglikelihood", PAIRS), disable_tqdm=True)
    for pair, (value, is_greedy) in zip(PAIRS, found, strict=True):
        assert value == pytest.approx(log_likelihood(live.vlm, *pair), abs=0.02)
        assert not is_greedy or value > -1


def test_generation(live, completions):
    asked = ("Is there a dog?", {"until": ["\n"], "max_gen_toks": 8})
    [found] = completions.generate_until(instances("generate_until", [asked]), disable_tqdm=True)
    body = {"prompt": asked[0], "max_tokens": 8, "temperature": 0, "stop": ["\n"]}
    reply = live.http.post("/v1/completions", json=body).json()
    assert found == reply["choices"][0]["text"]


def test_chat(live):
    chat = models.LocalChatCompletion(base_url=f"{live.url}/v1/chat/completions", model=NAME)
    prompt = chat.apply_chat_template([{"role": "user", "content": "Is there a dog?"}])
    asked = (prompt, {"until": ["\n"], "max_gen_toks": 8})
    [found] = chat.generate_until(instances("generate_until", [asked]), disable_tqdm=True)
    reply = live.ask("Is there a dog?", temperature=0).json()
    assert found == reply["choices"][0]["message"]["content"]
