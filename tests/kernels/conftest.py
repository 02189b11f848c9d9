"""What the kernels' tests share."""

from collections.abc import Iterator

import pytest
from instruction_sets import sets_here

from qwen25vl.kernels import library


@pytest.fixture(params=sets_here())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test once with the kernels of each instruction set in force, not at all where there
    are none."""
    monkeypatch.setenv("QWEN25VL_KERNELS", request.param)
    library.choose.cache_clear()
    yield request.param
    library.choose.cache_clear()
