"""docling's client of a model behind an API (ApiVlmOptions)."""

import pytest
from live_server import NAME, QUESTION, scene

api = pytest.importorskip("docling.utils.api_image_request", reason="docling is missing")


def test_a_page(live, expected):
    """It sends RGBA, names no model, and its own class requires every field of the reply."""
    found = api.api_image_request(
        scene(), QUESTION, f"{live.url}/v1/chat/completions", timeout=60, temperature=0,
        max_tokens=24,
    )  # fmt: skip
    assert (found.text, found.stop_reason) == (expected, api.VlmStopReason.END_OF_SEQUENCE)
    assert found.num_tokens > 0


def test_a_page_streamed(live, expected):
    found = api.api_image_request_streaming(
        scene(), QUESTION, f"{live.url}/v1/chat/completions", timeout=60, temperature=0,
        max_tokens=24, model=NAME,
    )  # fmt: skip
    assert found.text == expected
