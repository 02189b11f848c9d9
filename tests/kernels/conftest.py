"""What the kernels' tests share."""

from collections.abc import Iterator

import pytest

from qwen25vl.kernels import native


def sets_here() -> list[str]:
    """The instruction sets that were built and that this processor has."""
    library = native.open_library()[0]
    bits = int(library.processor_features()) if library else 0
    return [isa for bit, isa in enumerate(native.KNOWN[1:]) if bits >> bit & 1 and hasattr(library, f"probe_{isa}")]


@pytest.fixture(params=sets_here())
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Run the test once with the kernels of each instruction set in force; not at all where there are none."""
    monkeypatch.setenv("QWEN25VL_KERNELS", request.param)
    native.choose.cache_clear()
    yield request.param
    native.choose.cache_clear()
