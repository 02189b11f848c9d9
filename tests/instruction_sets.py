"""Which instruction sets the kernels' tests can run here."""

from qwen25vl.kernels import library as kernel_library


def sets_here() -> list[str]:
    """The instruction sets that were built and that this processor has."""
    library = kernel_library.open_library()[0]
    bits = int(library.processor_features()) if library else 0
    return [
        isa
        for bit, isa in enumerate(kernel_library.KNOWN[1:])
        if bits >> bit & 1 and hasattr(library, f"probe_{isa}")
    ]
