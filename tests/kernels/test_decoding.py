"""All decoder layers in one call: the bits of one by one, and never past somebody who changed a
layer or listens."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import qwen25vl
from qwen25vl.config import Qwen2_5_VLTextConfig
from qwen25vl.kernels import library
from qwen25vl.loading.quantization import quantise
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.cache import KVCache
from qwen25vl.model.decoding import MAX_ROWS
from qwen25vl.model.text import LanguageModel

WEIGHTS = {
    "bfloat16": None,
    "int8": Scheme(8),
    "int4": Scheme(4),
    "int4 in 32": Scheme(4, group_size=32),
    "int4 with zeros": Scheme(4, has_zeros=True),
    "int4 in 64 with zeros": Scheme(4, group_size=64, has_zeros=True),
}


def make_model(scheme: Scheme | None = None) -> LanguageModel:
    """Widths that no tile divides, biases and norms that are not their starting values."""
    torch.manual_seed(0)
    config = Qwen2_5_VLTextConfig.from_dict({
        "vocab_size": 50, "hidden_size": 144, "intermediate_size": 204, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
        "rope_scaling": {"type": "mrope", "mrope_section": [6, 6, 6]},
        "max_position_embeddings": 4096,
    })  # fmt: skip
    model = LanguageModel(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.1)
    model.to(torch.bfloat16).requires_grad_(False)
    for parent in list(model.layers.modules()) if scheme else ():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear):
                layer = quantise(child, replace(scheme, has_zeros=False))
                if scheme.has_zeros and name != "k_proj":  # whose neighbours go without it then
                    words = -(-layer.out_features // 8), layer.weight_scale.shape[1]
                    layer.weight_zero_point = torch.randint(-(2**31), 2**31, words).int()
                setattr(parent, name, layer)
    return model


def step(
    model: LanguageModel, lengths: list[int], seen: int = 5
) -> tuple[torch.Tensor, list[KVCache]]:
    """One pass of so many rows of each sequence, behind `seen`, seen + 1, … tokens."""
    generator = torch.Generator().manual_seed(1)
    caches = []
    for number, _ in enumerate(lengths):
        cache = KVCache(model.config, torch.bfloat16, capacity=8)
        cache.reserve(seen + number)
        cache.storage.normal_(generator=generator)
        cache.length = seen + number
        caches.append(cache)
    embeds = torch.randn(sum(lengths), 144, generator=generator).bfloat16()
    positions = torch.cat([torch.arange(n) + 20 * n for n in lengths]).expand(3, -1) + torch.tensor(
        [[0], [1], [2]]
    )
    with torch.inference_mode():
        return model.run(embeds, positions, lengths, caches), caches


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often the kernel was called since the last time this was asked."""
    made: list[int] = []
    functions = library.choose().functions
    kernel: Any = functions["decode"]
    monkeypatch.setitem(functions, "decode", lambda *operands: (made.append(1), kernel(*operands)))

    def count() -> int:
        number = len(made)
        made.clear()
        return number

    return count


@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("lengths", [[1], [3], [1] * 8, [2, 1, 16], [MAX_ROWS]], ids=str)
def test_bits_of_one_by_one(isa: str, weights: str, lengths: list[int]) -> None:
    """A difference in one bit would make an answer depend on how it was computed."""
    model = make_model(WEIGHTS[weights])
    kernel, functions = library.choose().functions["decode"], library.choose().functions
    at_once, caches = step(model, lengths)
    try:
        functions["decode"] = None
        one_by_one, others = step(model, lengths)
    finally:
        functions["decode"] = kernel
    assert torch.equal(at_once, one_by_one)
    for cache, other in zip(caches, others, strict=True):
        assert torch.equal(
            cache.storage[:, :, :, : cache.length], other.storage[:, :, :, : other.length]
        )


def test_answers_are_written_by_it(isa: str, calls: Callable[[], int]) -> None:
    """A condition that is never met would make everything slow again, and no test would tell."""
    vlm = qwen25vl.load(quantize="int8")
    calls()
    answer = vlm.ask("What is this?", max_new_tokens=8, min_new_tokens=8)
    assert calls() >= answer.usage.completion_tokens - 1


def test_takes_part_only_where_nobody_would_miss_it(isa: str, calls: Callable[[], int]) -> None:
    """Long prompts can be interrupted between layers; gradients and hidden states come from the
    layers."""
    model = make_model()
    step(model, [MAX_ROWS + 1])
    embeds, positions = torch.randn(2, 144).bfloat16(), torch.arange(2).expand(3, -1)
    model.run(embeds, positions, [2])
    cache = KVCache(model.config, torch.bfloat16)
    with torch.inference_mode():
        model.run(embeds, positions, [2], [cache], watch_states=lambda x: x)
        model.float().run(embeds.float(), positions, [2], [KVCache(model.config, torch.float32)])
    assert calls() == 0


def listen(model: LanguageModel) -> None:
    model.layers[1].mlp.register_forward_hook(lambda module, inputs, output: output * 2)


def replace_layer(model: LanguageModel) -> None:
    class Doubled(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 2

    old = model.layers[1].mlp.down_proj
    model.layers[1].mlp.down_proj = Doubled(old.in_features, old.out_features, bias=False).to(
        torch.bfloat16
    )


def replace_forward(model: LanguageModel) -> None:
    forward = model.layers[0].mlp.forward
    model.layers[0].mlp.forward = lambda x: forward(x) * 2


def drop_layer(model: LanguageModel) -> None:
    del model.layers[0]


@pytest.mark.parametrize("change", [listen, replace_layer, drop_layer])
def test_layers_changed_after_the_first_step(
    isa: str, calls: Callable[[], int], change: Callable[..., None]
) -> None:
    """LoRA, probes and patches change a model that has already answered."""
    model = make_model()
    before, _ = step(model, [1])
    assert calls() == 1
    change(model)
    after, _ = step(model, [1])
    assert calls() == 0
    assert not torch.equal(before, after)


def test_listeners_to_everything(isa: str, calls: Callable[[], int]) -> None:
    """Profilers hang a hook on all modules at once."""
    handle = nn.modules.module.register_module_forward_hook(lambda module, inputs, output: None)
    try:
        step(make_model(), [1])
    finally:
        handle.remove()
    assert calls() == 0


def test_a_forward_of_ones_own(isa: str, calls: Callable[[], int]) -> None:
    """Where it stands in the instance."""
    model = make_model()
    replace_forward(model)
    step(model, [1])
    assert calls() == 0


def test_weights_changed_after_the_first_step(isa: str, calls: Callable[[], int]) -> None:
    """Old addresses would read memory that is no longer there."""
    model, twin = make_model(), make_model(WEIGHTS["int8"])
    step(model, [1])
    layer = model.layers[2]
    layer.mlp.down_proj = twin.layers[2].mlp.down_proj
    layer.self_attn.q_proj.weight = nn.Parameter(layer.self_attn.q_proj.weight.flip(0))
    layer.input_layernorm.weight.data = layer.input_layernorm.weight.data * 2
    calls()
    at_once, _ = step(model, [2])
    assert calls() == 1
    listen(model)
    model.layers[1].mlp._forward_hooks.clear()
    model.layers[0].register_forward_hook(lambda *_: None)
    one_by_one, _ = step(model, [2])
    assert torch.equal(at_once, one_by_one)
