"""The built-in model, and a live server of it, one for all tests of a process."""

from collections.abc import Iterator

import pytest
from live_server import NAME, Live

import qwen25vl
from qwen25vl.serving.settings import ServerSettings


@pytest.fixture(scope="session")
def demo() -> qwen25vl.VisionLanguageModel:
    return qwen25vl.load()


@pytest.fixture(scope="session")
def live(demo: qwen25vl.VisionLanguageModel) -> Iterator[Live]:
    server = Live(ServerSettings(port=0, model_names=(NAME,)), demo)
    yield server
    server.close()
