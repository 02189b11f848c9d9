"""What the tests of formats share."""

import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Descriptions of files go into a cache of the test's own, and what is said about formats
    without kernels is not shown."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "quantised layers are slow|.*are worked out to")
        yield
