"""How fast the shapes of the 3B checkpoint are on a device, with random weights in bfloat16: steps
of gpu_check.py. transformers gets the same weights, in the same memory."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache
from inspect import signature
from statistics import median
from typing import Any

import torch
from gpu_models import Check, Job, error, require, small_config

PROMPT, NEW = 1400, 33
SIDE = {False: 74, True: 8}  # patches: 1024 pixels become 1036; whether it is small


def config_of(job: Job) -> Any:
    from qwen25vl.measure.random_model import released_config

    return small_config() if job.is_small else released_config("3b")


@cache
def model_of(job: Job, quantize: str | None = None) -> Any:
    from qwen25vl.measure.random_model import random_model

    return random_model(config_of(job), quantize).to(job.device).requires_grad_(False)


@cache
def their_model(job: Job) -> Any:
    """transformers' model with the very tensors of ours."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ours = model_of(job)
    config = Qwen2_5_VLConfig.from_dict(ours.config.to_dict())
    usual = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(job.device):
            model = Qwen2_5_VLForConditionalGeneration(config)
    finally:
        torch.set_default_dtype(usual)
    missing, unexpected = model.load_state_dict(ours.state_dict(), strict=False, assign=True)
    missing = [name for name in missing if name != "lm_head.weight"]
    if missing or unexpected:
        raise AssertionError(f"other weights: missing {missing[:2]}, unexpected {unexpected[:2]}")
    if ours.lm_head is None:
        model.lm_head.weight = model.get_input_embeddings().weight
    return model.eval()


def picture(job: Job) -> tuple[torch.Tensor, torch.Tensor]:
    """Patches of noise and their grid."""
    side = SIDE[job.is_small]
    generator = torch.Generator().manual_seed(0)
    patches = torch.randn(side * side, 1176, generator=generator).bfloat16().to(job.device)
    return patches, torch.tensor([[1, side, side]], device=job.device)


def vision_name(job: Job) -> str:
    side = 112 if job.is_small else 1024
    return f"vision, {side}×{side}"


def prefill_name(job: Job) -> str:
    return f"prefill, {words(job).shape[1]} tokens"


def words(job: Job, batch: int = 1) -> torch.Tensor:
    length = 40 if job.is_small else PROMPT
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 900, (batch, length), generator=generator).to(job.device)


def question(job: Job) -> dict[str, torch.Tensor]:
    """A picture among words."""
    config = config_of(job)
    patches, grid = picture(job)
    slots = [config.image_token_id] * (len(patches) // 4)
    start, end = config.vision_start_token_id, config.vision_end_token_id
    ids = torch.tensor([[*range(1, 21), start, *slots, end, *range(1, 11)]], device=job.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs | {"pixel_values": patches, "image_grid_thw": grid}


@torch.inference_mode()
def measure(job: Job, work: Callable[[], Any], engine: str, runs: int = 3) -> dict[str, Any]:
    """The median of some runs after one to warm up, and the peak of memory."""
    on_gpu = job.device.type == "cuda"
    wait = torch.cuda.synchronize if on_gpu else lambda: None
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        work()
        wait()
        times.append(time.perf_counter() - start)
    row: dict[str, Any] = {"engine": engine, "seconds": median(times[1:])}
    if on_gpu:
        row["peak_bytes"] = torch.cuda.max_memory_allocated()
    else:
        from qwen25vl.memory import process_bytes

        row["peak_bytes"] = process_bytes().get("peak")
    return row


def decoding(job: Job, model: Any, batch: int, engine: str, **options: Any) -> dict[str, Any]:
    """Seconds of a step: an answer of NEW tokens less one of a single token."""
    ids = words(job, batch)
    given = {"attention_mask": torch.ones_like(ids), "do_sample": False, **options}

    def write(count: int) -> None:
        model.generate(ids, max_new_tokens=count, min_new_tokens=count, **given)

    runs = 1 if job.is_small else 2
    one, many = (measure(job, lambda n=n: write(n), engine, runs) for n in (1, NEW))
    step = (many["seconds"] - one["seconds"]) / (NEW - 1)
    if step <= 0:
        return many | {"seconds": None, "note": "too fast to be told from the prompt"}
    return many | {"seconds": step, "note": f"{batch / step:.0f} tokens/s"}


def speed(job: Job) -> Iterator[Check]:
    model_of(job)
    patches, grid = picture(job)
    ids, ours = words(job), {"max_repeated_tokens": 0}
    model = model_of(job)
    yield vision_name(job), lambda: measure(job, lambda: model.visual(patches, grid), "ours")
    yield (
        prefill_name(job),
        lambda: measure(job, lambda: model(ids, use_cache=True, logits_to_keep=1), "ours"),
    )
    for batch in (1, 16):
        yield f"decode ×{batch}", lambda batch=batch: decoding(job, model, batch, "ours", **ours)


def speed_int4(job: Job) -> Iterator[Check]:
    """int4 layers in torch: less memory, hardly faster."""

    def measure_step() -> dict[str, Any]:
        model = model_of(job, "int4")
        return decoding(job, model, 1, "ours", max_repeated_tokens=0)

    yield "decode ×1, int4", measure_step


def speed_transformers(job: Job) -> Iterator[Check]:
    patches, grid = picture(job)
    ids = words(job)

    def vision() -> dict[str, Any]:
        model = their_model(job)
        return measure(job, lambda: model.model.visual(patches, grid_thw=grid), "transformers")

    def prefill() -> dict[str, Any]:
        model = their_model(job)
        read = lambda: model(input_ids=ids, use_cache=True, logits_to_keep=1)  # noqa: E731
        return measure(job, read, "transformers")

    yield vision_name(job), vision
    yield prefill_name(job), prefill
    for batch in (1, 16):
        yield (
            f"decode ×{batch}",
            lambda batch=batch: decoding(job, their_model(job), batch, "transformers"),
        )
    yield "logits of transformers", lambda: compare(job)


@torch.inference_mode()
def compare(job: Job) -> str:
    """The same weights and the same question: how far the two are from each other."""
    inputs = question(job)
    ours = model_of(job)(**inputs).logits.float()
    slots = inputs["input_ids"] == config_of(job).image_token_id
    reference = their_model(job)
    kinds = {"mm_token_type_ids": slots.long()}  # which not every version of it takes
    known = signature(reference.forward).parameters
    theirs = reference(**inputs, **{k: v for k, v in kinds.items() if k in known}).logits.float()
    same = (ours.argmax(-1) == theirs.argmax(-1)).float().mean().item()
    off = error(ours, theirs)
    return require(off < 0.05, f"off by {off:.1e}, the same best token at {same:.1%} of places")
