"""MinerU's HTTP client."""

import pytest
from live_server import QUESTION, scene

mineru = pytest.importorskip("mineru_vl_utils.vlm_client", reason="mineru-vl-utils is missing")


def test_predict(live, expected):
    """It takes the name of the only model in the list, sends both lengths and vLLM's extra fields,
    and takes an end other than "stop" for an error."""
    client = mineru.new_vlm_client(backend="http-client", server_url=live.url, use_tqdm=False)
    sampling = mineru.SamplingParams(
        temperature=0.0, top_k=1, repetition_penalty=1.0, presence_penalty=0.0,
        no_repeat_ngram_size=100, max_new_tokens=64,
    )  # fmt: skip
    found = client.predict(scene(), QUESTION, sampling)
    assert found.strip()
    assert client.batch_predict([scene()] * 2, QUESTION, sampling) == [found, found]
