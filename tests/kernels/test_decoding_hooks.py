"""Whoever listens to a layer hears every token, in bfloat16 too, where all layers may run in one
compiled call."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules import module as every_module

import qwen25vl

NUM_TOKENS = 4
Handle = torch.utils.hooks.RemovableHandle
Register = Callable[[nn.Module, list[str]], Handle]


@pytest.fixture(scope="module")
def vlm() -> qwen25vl.VisionLanguageModel:
    vlm = qwen25vl.load()
    assert vlm.model.dtype == torch.bfloat16
    return vlm


def before(module: nn.Module, heard: list[str]) -> Handle:
    return module.register_forward_pre_hook(lambda *_: heard.append("call"))


def before_with_keywords(module: nn.Module, heard: list[str]) -> Handle:
    hook: Any = lambda *_: heard.append("call")  # noqa: E731
    return module.register_forward_pre_hook(hook, with_kwargs=True)


def after(module: nn.Module, heard: list[str]) -> Handle:
    return module.register_forward_hook(lambda *_: heard.append("call"))


def after_always(module: nn.Module, heard: list[str]) -> Handle:
    return module.register_forward_hook(lambda *_: heard.append("call"), always_call=True)


def before_all(module: nn.Module, heard: list[str]) -> Handle:
    return every_module.register_module_forward_pre_hook(
        lambda called, _: heard.append("call") if called is module else None
    )


def after_all(module: nn.Module, heard: list[str]) -> Handle:
    return every_module.register_module_forward_hook(
        lambda called, *_: heard.append("call") if called is module else None
    )


@pytest.fixture
def heard_from(
    vlm: qwen25vl.VisionLanguageModel,
) -> Iterator[Callable[[Register, str], int]]:
    """How often a listener to a part of the layers is called while four tokens are written."""
    handles: list[Handle] = []

    def count(register: Register, path: str) -> int:
        heard: list[str] = []
        handles.append(register(vlm.model.model.language_model.layers.get_submodule(path), heard))
        vlm.ask("Hello?", max_new_tokens=NUM_TOKENS, min_new_tokens=NUM_TOKENS)
        handles.pop().remove()
        return len(heard)

    yield count
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize(
    "register", [before, before_with_keywords, after, after_always, before_all, after_all]
)
def test_every_kind_of_hook(
    register: Register, isa: str, heard_from: Callable[[Register, str], int]
) -> None:
    """A hook before a layer, which steering and activation patching use, saw the prompt and then
    no token of the answer."""
    assert heard_from(register, "0") == NUM_TOKENS


@pytest.mark.parametrize(
    "path", ["", "1", "0.self_attn", "1.mlp", "0.input_layernorm", "1.mlp.down_proj"]
)
def test_every_part_of_a_layer(
    path: str, isa: str, heard_from: Callable[[Register, str], int]
) -> None:
    """The layers themselves are asked, and all that is in them; the list of layers is never
    called."""
    assert heard_from(before, path) == (NUM_TOKENS if path else 0)


def test_a_hook_changes_the_answer(vlm: qwen25vl.VisionLanguageModel, isa: str) -> None:
    """A hook that turns the inputs round must turn every token's; the step after it is removed is
    as before."""
    inputs = torch.arange(20, 30)[None]
    options: dict[str, Any] = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
    options |= {"output_logits": True, "return_dict_in_generate": True}
    plain = vlm.model.generate(inputs, **options).logits
    mlp = vlm.model.model.language_model.layers[0].mlp
    calls: list[int] = []

    def turn(module: nn.Module, given: tuple[torch.Tensor]) -> tuple[torch.Tensor] | None:
        calls.append(len(given[0]))
        return None if len(calls) == 1 else (-given[0],)  # the prompt's pass stays as it is

    handle = mlp.register_forward_pre_hook(turn)
    turned = vlm.model.generate(inputs, **options).logits
    handle.remove()
    again = vlm.model.generate(inputs, **options).logits
    assert torch.equal(turned[0], plain[0])
    assert not torch.equal(turned[1], plain[1])
    assert torch.equal(torch.stack(again), torch.stack(plain))
