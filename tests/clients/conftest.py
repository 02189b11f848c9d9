"""A live server for real clients. What they need is installed by `make test-clients`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from live_server import NAME, QUESTION, Live, data_url, scene

import qwen25vl
from qwen25vl.serving.settings import ServerSettings


@pytest.fixture(scope="session")
def live() -> Iterator[Live]:
    settings = ServerSettings(port=0, model_names=(NAME,), any_model_name=True)
    server = Live(settings, qwen25vl.load())
    yield server
    server.close()


@pytest.fixture(scope="session")
def expected(live: Live) -> str:
    """The answer that each client is to bring back, to the letter."""
    return live.vlm.ask(QUESTION, images=[scene()], max_new_tokens=24).text


@pytest.fixture(scope="session")
def parts() -> list[dict]:
    url = data_url(scene())
    return [
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "text", "text": QUESTION},
    ]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker("clients")
