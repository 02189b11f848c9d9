"""Which compiled kernels serve, and that no machine, setting or missing compiler ends in worse than
torch."""

import ctypes
import os
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from instruction_sets import sets_here

from qwen25vl import kernels
from qwen25vl.errors import OptionError
from qwen25vl.kernels import library as kernel_library

REPOSITORY = Path(__file__).parents[2]
NATIVE = REPOSITORY / "src/qwen25vl/kernels/native"
KNOWN = kernel_library.KNOWN
is_built = kernel_library.open_library()[0] is not None
needs_library = pytest.mark.skipif(not is_built, reason="the kernels were not built here")


@pytest.fixture(autouse=True)
def _afresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test chooses anew, and the tests after these too."""
    monkeypatch.delenv("QWEN25VL_KERNELS", raising=False)
    for function in (kernel_library.choose, kernel_library.announce):
        function.cache_clear()
    yield
    for function in (kernel_library.choose, kernel_library.announce):
        function.cache_clear()


class Failing:
    """The library, with an instruction that no processor knows in the probes of some instruction
    sets."""

    def __init__(self, library: ctypes.CDLL, sets: tuple[str, ...]) -> None:
        self.library, self.sets = library, sets

    def __getattr__(self, name: str) -> object:
        return getattr(self.library, name)

    def __getitem__(self, name: str) -> object:
        return self.library["probe_illegal" if name.removeprefix("probe_") in self.sets else name]


def test_kernels_are_built_where_there_is_a_compiler() -> None:
    """An installation never fails for want of kernels, so that somebody has to notice when they are
    missing."""
    if kernel_library.is_supported() and shutil.which("c++"):
        assert is_built


@pytest.mark.parametrize("isa", kernel_library.KNOWN)
def test_environment_forces_a_set_or_says_what_there_is(
    isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking for what the processor lacks must not run anything else silently."""
    monkeypatch.setenv("QWEN25VL_KERNELS", isa)
    if isa != "torch" and isa not in sets_here():
        with pytest.raises(OptionError, match=f"^QWEN25VL_KERNELS={isa}: .*; available: torch"):
            kernel_library.choose()
        return
    choice = kernel_library.choose()
    assert (choice.isa, choice.problem) == (isa, "")
    assert kernel_library.describe().startswith(f"{isa} (QWEN25VL_KERNELS={isa}")
    for name, function in choice.functions.items():
        assert (function is None) == (isa == "torch" or name in choice.by_torch), name


def test_unknown_value_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A typing mistake must not mean the default."""
    monkeypatch.setenv("QWEN25VL_KERNELS", "avx1024")
    with pytest.raises(
        OptionError, match="'avx1024' is unknown; known are torch, base, avx2, avx512vnni, "
    ):
        kernel_library.function("linear_bf16")


@needs_library
def test_the_best_set_serves() -> None:
    """Nobody has to set anything."""
    best = ["torch", *sets_here()][-1]
    assert kernel_library.choose().isa == best
    assert kernel_library.describe().startswith(f"{best} (")


@pytest.mark.parametrize("system", ["linux", "win32"])
def test_without_a_library_torch_serves(
    system: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said once, with what to do; not at all where nothing can be done."""
    monkeypatch.setattr(kernels, "__path__", [str(tmp_path)])
    monkeypatch.delenv("QWEN25VL_KERNEL_LIBRARY", raising=False)
    monkeypatch.setattr("sys.platform", system)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kernel_library.announce()
        kernel_library.announce()
    assert [bool(re.search("not built.*C\\+\\+ compiler", str(w.message))) for w in caught] == [
        True
    ] * (system == "linux")
    assert kernel_library.describe().startswith("torch (")
    assert set(kernel_library.choose().functions.values()) == {None}
    monkeypatch.setenv("QWEN25VL_KERNELS", "avx2")
    kernel_library.choose.cache_clear()
    with pytest.raises(OptionError, match=r"available: torch$"):
        kernel_library.choose()


def test_a_named_library_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is missing is a mistake; one that can not be loaded leaves torch and a warning."""
    file = tmp_path / "library.so"
    monkeypatch.setenv("QWEN25VL_KERNEL_LIBRARY", str(file))
    with pytest.raises(OptionError, match=r"library\.so is not a file"):
        kernel_library.choose()
    file.write_text("no library")
    assert kernel_library.choose().isa == "torch"
    assert "cannot be loaded" in kernel_library.describe()


@needs_library
@pytest.mark.parametrize("is_forced", [False, True])
def test_torch_serves_where_it_was_measured_faster(
    is_forced: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where only "base" serves, the encoder's attention is torch's unless "base" was asked for;
    `bench` says so."""
    library = kernel_library.open_library()[0]
    assert library is not None

    class Processor(Failing):
        def processor_features(self) -> int:
            return 1

    monkeypatch.setattr(kernel_library, "open_library", lambda: (Processor(library, ()), ""))
    monkeypatch.setattr(kernel_library.platform, "machine", lambda: "x86_64")
    monkeypatch.setenv("QWEN25VL_KERNELS", "base" if is_forced else "")
    assert kernel_library.function("attend") is not None
    assert (kernel_library.function("attend_segments") is None) == (not is_forced)
    assert ("torch serves attend_segments: " in kernel_library.describe()) == (not is_forced)


@needs_library
def test_a_library_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python files were updated and the kernels were not: the same names with other arguments must
    not be called."""
    monkeypatch.setattr(kernel_library, "INTERFACE_VERSION", kernel_library.INTERFACE_VERSION + 1)
    assert kernel_library.choose().isa == "torch"
    assert "have interface" in kernel_library.describe()


@needs_library
@pytest.mark.parametrize("sets", [KNOWN[3:], KNOWN[2:], KNOWN[1:]], ids=str)
def test_a_set_that_fails_its_test_is_passed_over(
    sets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that promises instructions that it does not run is told so, and lives."""
    library = kernel_library.open_library()[0]
    assert library is not None
    if not set(sets) & set(sets_here()):
        pytest.skip("this processor has none of them")
    left = [isa for isa in sets_here() if isa not in sets]
    monkeypatch.setattr(kernel_library, "open_library", lambda: (Failing(library, sets), ""))
    with pytest.warns(UserWarning, match="kernels failed their test with an illegal instruction"):
        kernel_library.announce()
    assert kernel_library.choose().isa == ["torch", *left][-1]
    for isa in set(sets) & set(sets_here()):
        monkeypatch.setenv("QWEN25VL_KERNELS", isa)
        kernel_library.choose.cache_clear()
        with pytest.raises(OptionError, match=f"{isa}: the {isa} kernels failed"):
            kernel_library.choose()


@needs_library
@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_plain_kernels_serve_what_was_measured(
    machine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without AVX2 quantised layers were twenty times slower than they need be. All layers at once
    may only be computed by the kernels that serve one by one: else an answer would depend on it."""
    library = kernel_library.open_library()[0]
    assert library is not None

    class Processor(Failing):
        def processor_features(self) -> int:
            return 1

    monkeypatch.setattr(kernel_library, "open_library", lambda: (Processor(library, ()), ""))
    monkeypatch.setattr("platform.machine", lambda: machine)
    choice = kernel_library.choose()
    assert (choice.isa, choice.problem) == ("base", "")
    served = {name for name, function in choice.functions.items() if function is not None}
    assert {"linear_int8", "linear_int4", "rms_norm"} <= served
    assert set(choice.functions) - served == set(choice.by_torch)
    parts = {
        "linear_bf16",
        "linear_int8",
        "linear_int4",
        "rms_norm",
        "silu_mul",
        "rotate",
        "attend",
    }
    assert ("decode" in served) == (parts <= served) == (machine == "x86_64")
    monkeypatch.setenv("QWEN25VL_KERNELS", "base")
    kernel_library.choose.cache_clear()
    assert None not in kernel_library.choose().functions.values()


@needs_library
def test_trials_at_the_same_time() -> None:
    """Threads that load models at once share one signal handler."""
    library = kernel_library.open_library()[0]
    assert library is not None
    probes = [
        ctypes.cast(library[name], ctypes.c_void_p) for name in ("probe_illegal", "probe_avx2")
    ] * 20
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(library.try_probe, probes)) == [2, 0] * 20


@needs_library
def test_one_thread_pool_with_torch() -> None:
    """A second libgomp would bring a second pool, and both would fight for the same cores."""
    program = (
        "from pathlib import Path; from qwen25vl.kernels import library; "
        "library.choose(); "
        "lines = Path('/proc/self/maps').read_text().splitlines(); "
        "print(len({line.split()[-1] for line in lines if 'omp' in Path(line.split()[-1]).name}))"
    )
    assert subprocess.check_output([sys.executable, "-c", program], text=True).strip() == "1"


def test_signatures_are_those_of_the_sources() -> None:
    """ctypes believes what it is told: a missing argument would be a crash, or worse."""
    declared = {}
    for file in NATIVE.glob("*.cpp"):
        for name, arguments in re.findall(
            r"int64_t KERNEL\((\w+)\)\(([^)]+)\)", file.read_text(encoding="utf-8")
        ):
            types = [" ".join(argument.split()[:-1]) for argument in arguments.split(",")]
            letters = [
                "p" if "*" in argument else {"int64_t": "i", "float": "f"}.get(kind, "?")
                for kind, argument in zip(types, arguments.split(","), strict=True)
            ]
            declared[name] = "".join(letters)
    assert declared == {
        name: letters.replace(" ", "") for name, letters in kernel_library.SIGNATURES.items()
    }


@pytest.mark.skipif(not shutil.which("cmake"), reason="needs CMake on the path")
def test_no_compiler_is_no_error(tmp_path: Path) -> None:
    """An installation where nothing can be compiled configures, builds and installs nothing,
    without failing."""
    broken = os.environ | {"CXX": str(tmp_path / "nonexistent")}
    for command in (
        ["-S", str(REPOSITORY), "-B", "."],
        ["--build", "."],
        ["--install", ".", "--prefix", "installed"],
    ):
        done = subprocess.run(
            ["cmake", *command],
            cwd=tmp_path,
            env=broken,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        if "-S" in command:
            assert "no C++ compiler found" in done.stderr
    assert not list(tmp_path.rglob("*.so"))
