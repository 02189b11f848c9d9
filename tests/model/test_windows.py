"""Window order and segments, against the definition written out patch by patch."""

import pytest
import torch
from scenes import pixels

from qwen25vl.config import Qwen2_5_VLVisionConfig
from qwen25vl.inputs import Patches
from qwen25vl.model.layers import initialise
from qwen25vl.model.vision import Qwen2_5_VLVisionModel
from qwen25vl.model.windows import find_runs, plan_windows, split_grids

CONFIG = Qwen2_5_VLVisionConfig(
    depth=2,
    hidden_size=32,
    intermediate_size=40,
    num_heads=2,
    out_hidden_size=24,
    fullatt_block_indexes=(1,),
)
GRIDS = [(1, 16, 16), (1, 10, 14), (3, 6, 20), (1, 2, 2), (2, 18, 34), (1, 8, 8), (5, 8, 16)]


def vision_model(full: tuple[int, ...] = (1,)) -> Qwen2_5_VLVisionModel:
    torch.manual_seed(0)
    model = Qwen2_5_VLVisionModel(
        Qwen2_5_VLVisionConfig(
            depth=2,
            hidden_size=32,
            intermediate_size=40,
            num_heads=2,
            out_hidden_size=24,
            fullatt_block_indexes=full,
        )
    )
    initialise(model, 0.2)
    return model.eval()


@pytest.mark.parametrize("grid", GRIDS)
def test_each_window_is_one_segment_and_each_frame_too(grid: tuple[int, int, int]) -> None:
    """A patch put into its neighbour's window gives no error, only worse answers."""
    t, h, w = grid
    plan = plan_windows([grid], CONFIG)
    frame_of_token = torch.arange(t).repeat_interleave(h * w // 4)
    frame = frame_of_token[plan.order].repeat_interleave(4)
    window = list(
        zip(frame.tolist(), (plan.rows // 8).tolist(), (plan.columns // 8).tolist(), strict=True)
    )
    segments = [
        set(window[start : start + run.length])
        for run in plan.windows
        for start in range(run.start, run.stop, run.length)
    ]
    assert all(len(members) == 1 for members in segments)
    assert len(set.union(*segments)) == len(segments) == t * -(-h // 8) * -(-w // 8)
    assert [run.length for run in plan.frames] == [h * w]
    assert plan.frames[0].count == t


@pytest.mark.parametrize("grid", GRIDS)
def test_order_is_a_permutation_that_is_undone(grid: tuple[int, int, int]) -> None:
    """A wrong inverse would hand the text model a shuffled picture."""
    plan = plan_windows([grid, (1, 4, 4)], CONFIG)
    num_tokens = grid[0] * grid[1] * grid[2] // 4 + 4
    assert sorted(plan.order.tolist()) == list(range(num_tokens))
    assert torch.equal(plan.order[plan.inverse_order], torch.arange(num_tokens))


def test_windows_of_equal_size_share_a_run() -> None:
    """One call per window instead of one per size is what makes others slow."""
    plan = plan_windows([(1, 74, 74)], CONFIG)
    assert [(run.count, run.length) for run in plan.windows] == [(81, 64), (18, 16), (1, 4)]
    assert [(run.count, run.length) for run in find_runs([4, 4, 2, 4])] == [(2, 4), (1, 2), (1, 4)]


def test_split_keeps_frames_whole_and_in_order() -> None:
    """A clip cut inside a frame would change its full attention."""
    grids = [(5, 4, 4), (1, 10, 10), (3, 2, 2)]
    parts = list(split_grids(grids, 40))
    assert parts == [[(2, 4, 4)], [(2, 4, 4)], [(1, 4, 4)], [(1, 10, 10)], [(3, 2, 2)]]
    assert list(split_grids(grids, 10_000)) == [grids]


def test_parts_give_what_the_whole_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounded memory must not change a number."""
    model = vision_model()
    grids = [(4, 8, 12), (1, 10, 6), (2, 4, 4)]
    values = pixels(grids)
    with torch.no_grad():
        whole = model(values, grids)
        monkeypatch.setattr("qwen25vl.model.vision.MAX_PATCHES_PER_PASS", 100)
        parts = model(values, grids)
        shares = list(model.encode_in_parts(Patches([values]), grids, lambda: False))
    assert torch.allclose(whole, parts, atol=1e-6)
    assert shares[0] == pytest.approx(1 / 10)
    assert shares[-1] == pytest.approx(1)
    assert shares == sorted(shares)


def test_media_do_not_see_each_other() -> None:
    """encode([A, B, clip]) is A, B and the clip encoded alone, within 1e-6 of the largest value."""
    model = vision_model()
    grids = [(1, 16, 10), (1, 6, 22), (3, 8, 12)]
    values = [pixels([grid], seed) for seed, grid in enumerate(grids)]
    with torch.no_grad():
        together = model(torch.cat(values), grids)
        alone = torch.cat([model(value, [grid]) for value, grid in zip(values, grids, strict=True)])
    assert (together - alone).abs().max() <= 1e-6 * alone.abs().max()


@pytest.mark.parametrize(("full", "reaches"), [((), False), ((1,), True)])
def test_a_pixel_reaches_its_window_and_in_full_blocks_its_frame(
    full: tuple[int, ...], reaches: bool
) -> None:
    """Window blocks that leak, or full blocks that do not reach, give no error either."""
    model = vision_model(full)
    grid = (2, 16, 16)
    values = pixels([grid])
    changed = values.clone()
    changed[0] += 1.0
    with torch.no_grad():
        moved = (model(values, [grid]) - model(changed, [grid])).abs().amax(1).view(2, 8, 8) > 1e-7
    assert moved[0, :4, :4].all()
    assert moved[0, 4:, 4:].all() == reaches
    assert moved[0, 4:, 4:].any() == reaches
    assert not moved[1].any(), "frames of a clip never see each other"
