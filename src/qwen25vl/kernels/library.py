"""The compiled kernels: where they are, which instruction set this machine takes, and the functions
themselves.

One shared library holds every kernel once per instruction set; the smallest set, "base", is plain
C++ for any processor. What the processor and the operating system promise is asked first
(native/processor_*.cpp); then the best set runs one instruction of each of its extensions
(native/probe.cpp) in a thread that survives an illegal one and checks the numbers: less than a
millisecond, once per process. A set that fails is passed over for the next smaller one, and
`announce` says so.

Environment: QWEN25VL_KERNELS=torch|base|avx2|avx512vnni|avx512|amx forces a set;
QWEN25VL_KERNEL_LIBRARY names another library file, such as one built with a sanitizer. Both are
read at the first use.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch  # noqa: F401  first, so that its libgomp.so.1 is the one that the kernels' threads come from

from qwen25vl import kernels
from qwen25vl.errors import LESS_MEMORY, OptionError, OutOfMemoryError

Function = Callable[..., Any]
LIBRARY = "libqwen25vl_kernels.so"
INTERFACE_VERSION = 5  # of SIGNATURES, as features.cpp has it
KNOWN = (
    "torch",
    "base",
    "avx2",
    "avx512vnni",  # without products of bfloat16: Cascade Lake, Ice Lake
    "avx512",
    "amx",
)  # each one's kernels may use what the ones before it have
OUTCOMES = (
    "",
    "wrong numbers",
    "an illegal instruction",
    "no thread to test them in",
)  # of try_probe
X86 = ("x86_64", "amd64")
TYPES = {"p": ctypes.c_void_p, "i": ctypes.c_int64, "f": ctypes.c_float}
SIGNATURES = {  # every kernel's arguments: p pointer, i int64, f float32; spaces mean nothing
    "linear_bf16": "pppp iiii",
    "linear_int8": "ppppp iiiii",
    "linear_int4": "pppppp iiiii",
    "rms_norm": "ppp f iii",
    "silu_mul": "ppp ii",
    "rotate": "pp i pp i iiii",
    "attend": "pp ii pi ii iii f ii",
    "decode": "pp i ff pp i p iiiiii",
    "resize_frames": "pp iiiiii",
    "patch_frames": "pppp iiiiiiiiii",
    "search_scales": "ppp iiiii",
    "pack_levels": "ppp iiii",
}
# Operations that share a kernel with another one, but may be served otherwise.
SAME_KERNEL = {"attend_segments": "attend"}
# Operations that torch serves where nothing above "base" does, although there is a kernel. A line
# here needs a measurement (benchmarks/operations.py) that torch is faster, and that it gives a row
# or segment the same bits in any company (tests/kernels/test_attention.py): where the two conflict,
# the bits decide. The other operations are faster in "base" than in torch without AVX2, on x86-64:
# quantised layers 8 to 14 times for one row and 4 to 5 times for 512 rows.
FASTER_THAN_BASE = {"attend_segments": "up to 1.4 times as fast"}
# What "base" serves on other processors, where torch may have fast products of its own for
# bfloat16. Nothing was measured there.
SERVED_ELSEWHERE = {
    "linear_int8", "linear_int4", "rms_norm", "silu_mul", "rotate", "resize_frames", "patch_frames",
    "search_scales", "pack_levels",
}  # fmt: skip


@dataclass(frozen=True)
class Choice:
    """The instruction set in use, why, what a user should know about it (or ""), the functions by
    name, and which operations torch serves because it is faster, with the reason."""

    isa: str
    why: str
    problem: str = ""
    functions: dict[str, Function | None] = field(
        default_factory=lambda: dict.fromkeys([*SIGNATURES, *SAME_KERNEL])
    )
    by_torch: dict[str, str] = field(default_factory=dict)


def function(name: str) -> Function | None:
    """The kernel that serves an operation on this machine, or None where torch serves it."""
    return choose().functions[name]


def describe() -> str:
    """What was chosen and why, in one line."""
    by_torch = "".join(
        f"; torch serves {name}: {reason}" for name, reason in choose().by_torch.items()
    )
    return f"{choose().isa} ({choose().why}{by_torch})"


@cache
def announce() -> None:
    """Warn, once, of kernels that are missing or failed; called when a model is loaded to the
    CPU."""
    if choose().problem:
        warnings.warn(choose().problem, stacklevel=2)


@cache
def choose() -> Choice:
    """Choose the instruction set. Raises OptionError for a QWEN25VL_KERNELS that is unknown or
    cannot be had."""
    wanted = os.environ.get("QWEN25VL_KERNELS", "")
    if wanted not in ("", *KNOWN):
        raise OptionError(f"QWEN25VL_KERNELS={wanted!r} is unknown; known are {', '.join(KNOWN)}")
    if wanted == "torch":
        return Choice("torch", "QWEN25VL_KERNELS=torch")
    library, lack = open_library()
    bits = library.processor_features() if library else 0
    has = [isa for bit, isa in enumerate(KNOWN[1:]) if bits >> bit & 1]
    built = [isa for isa in has if hasattr(library, f"probe_{isa}")]
    if library and not built:
        lack = f"the kernels were built without {', '.join(has)}"
    if wanted and wanted not in built:
        reason = lack or ("it was not built" if wanted in has else "this processor lacks it")
        raise OptionError(
            f"QWEN25VL_KERNELS={wanted}: {reason}; available: {', '.join(['torch', *built])}"
        )
    failed: list[str] = []
    for isa in [wanted] if wanted else reversed(built):
        assert library is not None
        outcome = library.try_probe(ctypes.cast(library[f"probe_{isa}"], ctypes.c_void_p))
        if outcome == 0:
            missing = "".join(f", {one} (not built)" for one in has if one not in built)
            why = (
                f"QWEN25VL_KERNELS={isa}"
                if wanted
                else f"the processor has {', '.join(built)}{missing}"
            )
            problem = f"{'; '.join(failed)}; {isa} serves instead" if failed else ""
            by_torch = left_to_torch(isa, bool(wanted))
            functions = bind(library, isa) | dict.fromkeys(by_torch)
            return Choice(isa, "; ".join([why, *failed]), problem, functions, by_torch)
        failed.append(f"the {isa} kernels failed their test with {OUTCOMES[outcome]}")
    if wanted:
        raise OptionError(f"QWEN25VL_KERNELS={wanted}: {failed[0]}")
    why = "; ".join(failed) or lack
    return Choice("torch", why, remedy(why) if is_supported() else "")


def left_to_torch(isa: str, is_forced: bool) -> dict[str, str]:
    """The operations that torch serves although the instruction set has a kernel, with the reasons.

    "base" serves all of them where it was asked for, so that the tests reach every kernel.
    """
    if isa != "base" or is_forced:
        return {}
    if platform.machine().lower() in X86:
        return FASTER_THAN_BASE
    others = sorted({*SIGNATURES, *SAME_KERNEL} - SERVED_ELSEWHERE)
    return dict.fromkeys(others, f"not measured on {platform.machine()}")


def is_supported() -> bool:
    """Whether kernels could have been built for this machine at all."""
    return sys.platform == "linux"


def remedy(lack: str) -> str:
    return (
        f"{lack}; everything works, but slowly, in torch. Install a C++ compiler (g++ 11 or "
        "newer) and reinstall qwen25vl, or set QWEN25VL_KERNELS=torch to accept it"
    )


def open_library() -> tuple[ctypes.CDLL | None, str]:
    """The library, or None and why there is none."""
    named = os.environ.get("QWEN25VL_KERNEL_LIBRARY")
    files = [Path(named)] if named else [Path(folder, LIBRARY) for folder in kernels.__path__]
    found = next((file for file in files if file.is_file()), None)
    if named and not found:
        raise OptionError(f"QWEN25VL_KERNEL_LIBRARY={named} is not a file")
    if found is None and not is_supported():
        return None, f"there are none for {platform.system()} on {platform.machine()}"
    if found is None:
        return None, "the compiled kernels were not built"
    try:
        library = ctypes.CDLL(str(found))
        for number in (library.processor_features, library.try_probe, library.interface_version):
            number.restype = ctypes.c_int64
        library.try_probe.argtypes, library.fail_allocation.argtypes = (
            [ctypes.c_void_p],
            [ctypes.c_int64],
        )
        version = library.interface_version()
    except (OSError, AttributeError) as error:
        return None, f"the compiled kernels cannot be loaded ({error})"
    if version != INTERFACE_VERSION:
        return (
            None,
            f"the compiled kernels have interface {version}, this package needs "
            f"{INTERFACE_VERSION}",
        )
    return library, ""


def raise_for_status(status: int, function: Any, arguments: tuple[Any, ...]) -> None:
    """Raise OutOfMemoryError where a kernel found no memory for its scratch space; its result is
    then unusable."""
    if status:
        raise OutOfMemoryError(f"out of memory in {function.__name__}; {LESS_MEMORY}")


def bind(library: ctypes.CDLL, isa: str) -> dict[str, Function | None]:
    """Every kernel for an instruction set, with its argument types; what AMX has no use for is
    AVX-512's."""
    functions: dict[str, Function | None] = {}
    for name, letters in SIGNATURES.items():
        names = [f"{name}_{isa}", f"{name}_avx512"] if isa == "amx" else [f"{name}_{isa}"]
        found = next((getattr(library, one) for one in names if hasattr(library, one)), None)
        if found is not None:
            found.argtypes = [TYPES[letter] for letter in letters.replace(" ", "")]
            found.restype, found.errcheck = ctypes.c_int64, raise_for_status
        functions[name] = found
    return functions | {name: functions[kernel] for name, kernel in SAME_KERNEL.items()}
