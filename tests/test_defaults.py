"""The process's defaults stay outside: torch's default dtype and device change no answer.

A default of float64 once gave another answer, one of bfloat16 read pixels past their end, and one
of "meta" ended the process: tensors for kernels were made in whatever type and place the program
had set.
"""

import ast
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image

import qwen25vl

SOURCE = Path(qwen25vl.__file__).parent
PLACED = {"arange", "as_tensor", "empty", "eye", "full", "linspace", "ones", "rand", "randint",
          "randn", "randperm",
          "scalar_tensor", "tensor", "zeros"}  # fmt: skip
TYPED = PLACED - {"arange", "randint", "randperm"}  # these give int64, whatever the default
PARAMETERS = {("model/layers.py", "ones")}  # where a program makes a model, its defaults are meant


@pytest.fixture(scope="module")
def vlm() -> qwen25vl.VisionLanguageModel:
    return qwen25vl.load(quantize="int8")


@contextmanager
def default(value: torch.dtype | str) -> Iterator[None]:
    if isinstance(value, str):
        with torch.device(value):
            yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(value)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize(
    "value", [torch.float64, torch.bfloat16, torch.float16, "meta", "cuda"], ids=str
)
def test_answers_do_not_depend_on_defaults(
    vlm: qwen25vl.VisionLanguageModel, value: torch.dtype | str
) -> None:
    """A picture, a clip, a sampled answer and several of them;
    a model loaded under the default as well."""
    picture = Image.effect_noise((120, 90), 80).convert("RGB")

    def answer(model: qwen25vl.VisionLanguageModel) -> list[str]:
        clip = [[picture, picture, picture.rotate(90).resize(picture.size)]]
        return [
            model.ask("What is this?", images=[picture], max_new_tokens=6).text,
            model.ask(
                "What happens?", videos=clip, max_new_tokens=6, prompt_lookup_num_tokens=3
            ).text,
            model.ask(
                "Name it.", max_new_tokens=6, do_sample=True, temperature=2.0, top_p=0.9, seed=3
            ).text,
        ]

    wanted = answer(vlm)
    with default(value):
        assert answer(vlm) == wanted
        assert answer(qwen25vl.load(quantize="int8")) == wanted


@pytest.mark.parametrize(
    "path", sorted(SOURCE.rglob("*.py")), ids=lambda p: str(p.relative_to(SOURCE))
)
def test_tensors_say_where_and_what_they_are(path: Path) -> None:
    """Each tensor that the package makes names its device,
    and its type where the default would decide it."""
    name = path.relative_to(SOURCE).as_posix()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        function = node.func.attr
        is_torch = ast.unparse(node.func.value) == "torch" and (name, function) not in PARAMETERS
        given = {keyword.arg for keyword in node.keywords}
        wanted = set()
        if is_torch and function in PLACED:
            wanted = {"device", "dtype"} if function in TYPED else {"device"}
        assert wanted <= given, (
            f"{name}:{node.lineno}: torch.{function} without {', '.join(sorted(wanted - given))}"
        )
