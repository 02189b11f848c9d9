"""The head in 8 bits: served only for the weights it was made from,
and never seen by files or gradients."""

import copy
import gc
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from checkpoints import write_checkpoint
from torch import nn

import qwen25vl
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration as Model
from qwen25vl.kernels import library

IDS = torch.arange(1, 30)[None]
WIDE = {
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 160,
    "rope_scaling": {"mrope_section": [4, 6, 6]},
}
needs_kernels = pytest.mark.skipif(
    library.function("linear_int8") is None, reason="only the kernels read this head"
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """By whether the head is tied to the embeddings."""
    return {
        tied: write_checkpoint(
            tmp_path_factory.mktemp("head"), {"added_tokens": []}, tied=tied, dtype=torch.bfloat16,
            text=WIDE, vision={"out_hidden_size": 128},
        )
        for tied in (True, False)
    }  # fmt: skip


def logits_of(model: Model) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits


def plain_logits(model: Model) -> torch.Tensor:
    """What the head itself makes of the same hidden states."""
    head, model.int8_head = model.int8_head, None
    try:
        return logits_of(model)
    finally:
        model.int8_head = head


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one.float() - other.float()).square().mean() / other.float().square().mean())


def in_place(model: Model) -> None:
    with torch.no_grad():
        model.head.weight.mul_(-2)


def in_inference_mode(model: Model) -> None:
    with torch.inference_mode():
        model.head.weight.mul_(-2)


def one_row(model: Model) -> None:
    with torch.no_grad():
        model.head.weight[7] = 3


def through_data(model: Model) -> None:
    model.head.weight.data.mul_(-2)


def other_data(model: Model) -> None:
    model.head.weight.data = model.head.weight.data.flip(0)


def other_parameter(model: Model) -> None:
    model.head.weight = nn.Parameter(model.head.weight.detach().flip(0))


def parameter_of_inference_mode(model: Model) -> None:
    with torch.inference_mode():
        model.head.weight = nn.Parameter(model.head.weight.detach().flip(0))


def at_the_same_address(model: Model) -> None:
    """Freed memory is handed out again: same address, same shape, same counter."""
    shape, numbers = model.head.weight.shape, model.head.weight.detach().flip(0)
    model.head.weight = nn.Parameter(torch.empty(0, dtype=numbers.dtype))
    gc.collect()
    model.head.weight = nn.Parameter(torch.empty(shape, dtype=numbers.dtype))
    model.head.weight.data.copy_(numbers)


def load_state(model: Model) -> None:
    key = (
        "lm_head.weight"
        if model.lm_head is not None
        else "model.language_model.embed_tokens.weight"
    )
    model.load_state_dict(model.state_dict() | {key: model.head.weight.detach() * -2})


def assign_state(model: Model) -> None:
    key = (
        "lm_head.weight"
        if model.lm_head is not None
        else "model.language_model.embed_tokens.weight"
    )
    model.load_state_dict(model.state_dict() | {key: model.head.weight.detach() * -2}, assign=True)


def there_and_back(model: Model) -> None:
    model.float()
    in_place(model)
    model.bfloat16()


def tie(model: Model) -> None:
    if model.lm_head is None:
        in_place(model)
    model.lm_head = None


def untie(model: Model) -> None:
    model.lm_head = nn.Linear(128, 96, bias=False, dtype=torch.bfloat16)


def head_with_bias(model: Model) -> None:
    model.lm_head = nn.Linear(128, 96, bias=True, dtype=torch.bfloat16)
    nn.init.constant_(model.lm_head.bias, 5)


def hooked_head(model: Model) -> None:
    untie(model)
    model.lm_head.register_forward_hook(lambda module, inputs, output: output * 3)


def wrapped_head(model: Model) -> None:
    """As an adapter does it: a module with the base layer's weight and a forward of its own."""

    class Adapter(nn.Module):
        def __init__(self, base: nn.Linear) -> None:
            super().__init__()
            self.base, self.weight = base, base.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.base(x) - 4 * x.sum(-1, keepdim=True)

    model.lm_head = Adapter(nn.Linear(128, 96, bias=False, dtype=torch.bfloat16))


CHANGES = [
    in_place, in_inference_mode, one_row, through_data, other_data, other_parameter,
    parameter_of_inference_mode, at_the_same_address, load_state, assign_state, there_and_back, tie,
    untie, head_with_bias, hooked_head, wrapped_head,
]  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_changed_head_changes_the_logits(
    folders: dict[bool, Path], tied: bool, change: Callable[[Model], None]
) -> None:
    """A copy made while loading answered for a head that had long been another."""
    model = load_model(folders[tied], quantization_config="int8")
    before = logits_of(model)
    change(model)
    wanted = plain_logits(model)
    assert not torch.equal(before, wanted)
    assert distance(logits_of(model), wanted) < 1e-3


@needs_kernels
def test_it_serves_and_serves_again_after_a_change(folders: dict[bool, Path]) -> None:
    """A head that is never used would pass all the other tests, and make every token slower."""
    model = load_model(folders[True], quantization_config="int4")
    assert not torch.equal(logits_of(model), plain_logits(model))
    in_place(model)
    assert not torch.equal(logits_of(model), plain_logits(model))
    with torch.inference_mode():
        made_inside = load_model(folders[True], quantization_config="int4")
    assert torch.equal(
        logits_of(made_inside), logits_of(load_model(folders[True], quantization_config="int4"))
    )
    assert not torch.equal(logits_of(made_inside), plain_logits(made_inside))


@needs_kernels
def test_the_copy_is_made_once(folders: dict[bool, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Quantising the head at every token would take longer than reading it."""
    model = load_model(folders[False], quantization_config="int8")

    def never(weight: torch.Tensor) -> None:
        raise AssertionError("quantised again")

    monkeypatch.setattr("qwen25vl.model.int8_head.quantise_rows", never)
    assert torch.equal(logits_of(model), logits_of(model))
    model.to("cpu").to(torch.bfloat16).eval().requires_grad_(False)
    logits_of(model)


def test_an_old_weight_is_let_go(folders: dict[bool, Path]) -> None:
    """The copy knows its source; of a replaced head neither may stay in memory."""
    model = load_model(folders[False], quantization_config="int8")
    logits_of(model)
    old = weakref.ref(model.head.weight)
    other_parameter(model)
    logits_of(model)
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("tied", [True, False])
def test_gradients_reach_the_head(folders: dict[bool, Path], tied: bool) -> None:
    """Training a quantised model's head moved nothing: no gradient passed its copy."""
    model = load_model(folders[tied], quantization_config="int8")
    model(IDS, labels=IDS).loss.backward()
    gradient = model.head.weight.grad
    assert gradient is not None
    assert (gradient != 0).any(1).all()
    with torch.no_grad():
        model.head.weight -= 10 * gradient
    assert distance(logits_of(model), plain_logits(model)) < 1e-3


def test_files_hold_none_of_it(folders: dict[bool, Path], tmp_path: Path) -> None:
    """state_dict and saved folders are what other engines load."""
    model = load_model(folders[False], quantization_config="int8")
    logits_of(model)
    plain = load_model(folders[False])
    extra = model.state_dict().keys() - plain.state_dict().keys()
    assert all(key.endswith((".weight_packed", ".weight_scale")) for key in extra)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(load_model(tmp_path)), logits_of(model))


KINDS = ["int8", "int4", "int8+vision", "int4+vision"]


@pytest.mark.parametrize("kind", KINDS)
def test_copies(folders: dict[bool, Path], kind: str) -> None:
    """deepcopy and pickle of mapped weights: the same logits, and no tie to the original."""
    model = load_model(folders[True], quantization_config=kind)
    logits = logits_of(model)
    stored = pickle.dumps(model)
    num_bytes = sum(tensor.nbytes for tensor in model.state_dict().values())
    assert num_bytes < len(stored) < num_bytes + 200_000  # once, and not the file's other tensors
    for twin in (copy.deepcopy(model), pickle.loads(stored)):
        assert torch.equal(logits_of(twin), logits)
        in_place(twin)
        assert not torch.equal(logits_of(twin), logits)
        assert distance(logits_of(twin), plain_logits(twin)) < 1e-3
    assert torch.equal(logits_of(model), logits)


def test_copies_after_an_answer() -> None:
    """The decoder remembers addresses of the layers, which are others in a copy."""
    vlm = qwen25vl.load(quantize="int4")
    model, ids = vlm.model, torch.arange(5, 25)[None]
    answer = model.generate(ids, max_new_tokens=6)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin.generate(ids, max_new_tokens=6), answer)
        twin.model.language_model.layers[0].mlp.down_proj.weight_scale.zero_()
    assert torch.equal(model.generate(ids, max_new_tokens=6), answer)


PROGRAM = """
import pickle, sys, torch
torch.set_num_threads(1)
with open(sys.argv[1], "rb") as file:
    models, ids = pickle.load(file)
with torch.inference_mode():
    logits = [model(ids).logits for model in models]
with open(sys.argv[2], "wb") as file:
    pickle.dump(logits, file)
"""


def test_in_another_process(folders: dict[bool, Path], tmp_path: Path) -> None:
    """Workers of Ray and of multiprocessing get a model pickled:
    a function made inside another cannot be."""
    models = [load_model(folders[True], quantization_config=kind) for kind in KINDS]
    logits = [logits_of(model) for model in models]
    (tmp_path / "models").write_bytes(pickle.dumps((models, IDS)))
    subprocess.run(
        [sys.executable, "-c", PROGRAM, tmp_path / "models", tmp_path / "logits"], check=True
    )
    there = pickle.loads((tmp_path / "logits").read_bytes())
    assert all(map(torch.equal, there, logits))
