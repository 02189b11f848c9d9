"""The cost of an input, against the model that has to pay it."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from qwen25vl import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, memory
from qwen25vl.config import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qwen25vl.errors import OutOfMemoryError
from qwen25vl.inputs import Grid
from qwen25vl.loading.quantization import PackedLinear
from qwen25vl.measure import cost
from qwen25vl.measure.random_model import measure_rates, random_model, released_config

TEXT = Qwen2_5_VLTextConfig(512, 256, 512, 2, 2, 1)
VISION = Qwen2_5_VLVisionConfig(4, 160, 320, 2, out_hidden_size=256, fullatt_block_indexes=(1, 3))
CONFIG = Qwen2_5_VLConfig(TEXT, VISION, image_token_id=500, tie_word_embeddings=True)


@pytest.mark.parametrize("grid", [(1, 2, 2), (1, 20, 34), (2, 16, 16)])
def test_vision_operations_are_the_encoders(grid: Grid, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows cut off at the edge cost less than whole ones; frames do not see each other."""
    monkeypatch.setenv("QWEN25VL_KERNELS", "torch")
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(CONFIG, "eager")
        pixels = torch.empty(grid[0] * grid[1] * grid[2], 1176)
    with FlopCounterMode(display=False) as counter:
        model.visual(pixels, [grid])
    assert counter.get_total_flops() == pytest.approx(
        cost.vision_operations(VISION, [grid]), rel=1e-6
    )


def test_text_operations_are_the_layers() -> None:
    """Attention is counted as its causal half, which the equation spelled out does not save."""
    model = random_model(CONFIG, dtype=torch.float32)
    with FlopCounterMode(display=False) as counter:
        model.model.language_model.run(torch.zeros(40, 256), torch.arange(40).expand(3, -1), [40])
    assert counter.get_total_flops() == pytest.approx(cost.text_operations(TEXT, 40), rel=0.03)
    whole = cost.text_operations(TEXT, 100)
    assert cost.text_operations(TEXT, 60) + cost.text_operations(TEXT, 40, 60) == pytest.approx(
        whole
    )


@pytest.mark.parametrize("quantize", [None, "int8", "int4"])
def test_random_models_answer(quantize: str | None) -> None:
    """A model for measuring is a whole model: layers of its own, no parameter left on "meta"."""
    model = random_model(CONFIG, quantize)
    out = model(input_ids=torch.arange(7)[None])
    assert torch.isfinite(out.logits).all()
    tensors = [*model.parameters(), *model.buffers()]
    assert all(tensor.device.type == "cpu" for tensor in tensors)
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


def test_a_random_model_that_can_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """72B in bfloat16 would swap the machine to death."""
    monkeypatch.setattr("qwen25vl.memory.available_bytes", lambda device: 10**9)
    with pytest.raises(OutOfMemoryError, match=r"needs 14\d\.\d GB .* 1\.0 GB are free; try"):
        random_model(released_config("72b"))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_seconds_are_estimated_from_a_few_layers(precision: str) -> None:
    """More pixels and more tokens never cost less."""
    rates = measure_rates(CONFIG, precision, (1, 40, 40), 100)
    small = cost.estimate(CONFIG, rates, [(1, 20, 20)], 100, precision)
    large = cost.estimate(CONFIG, rates, [(1, 20, 20), (1, 40, 40)], 500, precision)
    assert 0 < small.vision < large.vision
    assert 0 < small.prefill < large.prefill
    assert 0 < small.token < large.token


def test_a_request_that_can_not_fit_is_refused_before_it_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else the machine swaps, or the kernel ends the process without a word."""
    model = random_model(replace(CONFIG, dtype="float32"))
    ids = torch.full((1, 9), 5)
    monkeypatch.setattr("qwen25vl.engine.engine.run_rows", lambda *_: pytest.fail("it ran"))
    monkeypatch.setattr("qwen25vl.memory.available_bytes", lambda device: 1000)
    with pytest.raises(
        OutOfMemoryError,
        match=r"9 prompt tokens and 0 patches needs .* GB are free; try a model in",
    ):
        model.generate(ids)


def test_seconds_follow_the_rates() -> None:
    """By hand from round rates: an estimate that is only compared with itself
    may be three times too high."""
    rates = cost.Rates(vision=1e9, prefill=2e9, decode=1e8, read=4e8)
    found = cost.estimate(CONFIG, rates, [(1, 20, 20)], 100, "bfloat16")
    assert found.vision == pytest.approx(
        cost.vision_operations(VISION, [(1, 20, 20)]) / 1e9, rel=0.1
    )
    head = 512 * 256 * 2 / 4e8
    assert found.prefill == pytest.approx(
        cost.text_operations(TEXT, 100) / 2e9 + head + 5e-4, rel=0.1
    )
    layers = 2 * (256 * (2 * 256 + 2 * 128 + 3 * 512)) * 2 / 1e8
    assert found.token == pytest.approx(layers + head + 2 * 2 * 100 * 2 * 128 / 4e8 + 5e-4, rel=0.1)


@pytest.mark.parametrize(
    "precision", [name for name in cost.BYTES_PER_WEIGHT if name.startswith("int")]
)
def test_bytes_of_a_weight_are_those_of_the_layers(precision: str) -> None:
    """int4 at ten times its bytes went unseen."""
    model = random_model(CONFIG, precision)
    linears = [
        m for m in model.model.language_model.layers.modules() if isinstance(m, PackedLinear)
    ]
    taken = sum(buffer.nbytes for linear in linears for buffer in linear.buffers())
    counted = TEXT.num_hidden_layers * cost.layer_weights(TEXT) * cost.BYTES_PER_WEIGHT[precision]
    assert counted == pytest.approx(taken, rel=0.02)


@pytest.mark.parametrize(
    ("limit", "free"),
    [("1000", 1000 - 700 + 200), ("500", 0), ("max", None), (None, None), ("many", None)],
)
def test_a_containers_file_cache_is_free(
    limit: str | None, free: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mapped weights count as used in a control group;
    without them back a loaded model leaves nothing free."""
    monkeypatch.setattr(memory, "mapped_bytes", lambda: 0)
    monkeypatch.setattr(memory, "CGROUP", tmp_path)
    if limit is not None:
        (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 400\nfile 200\nkernel 7\n")
    assert memory.free_bytes_of_container() == free
    monkeypatch.setattr(memory, "free_bytes_of_machine", lambda: 600)
    assert memory.available_bytes(torch.device("cpu")) == (600 if free is None else min(600, free))
