"""from_pretrained for models: a folder in, a model out, every parameter set exactly once.

The model is built without memory ("meta"). Weights that already have the wanted type stay where
they are, in the mapped file; the others are converted, quantised or moved one layer at a time, so
that no more than one layer exists twice.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import CheckpointError, ConfigError, UsageError
from qwen25vl.kernels import library
from qwen25vl.kernels.allocator import map_large_buffers
from qwen25vl.loading.checkpoint import EMBEDDINGS, Checkpoint
from qwen25vl.loading.formats import stored_format
from qwen25vl.loading.formats.mlx import turn_patches
from qwen25vl.loading.plan import LoadPlan, plan_loading
from qwen25vl.loading.quantization import add_int8_head, covered_linears, quantise
from qwen25vl.loading.rounding import RoundingError, warn_dequantised
from qwen25vl.loading.scheme import Scheme
from qwen25vl.loading.settling import settle_config
from qwen25vl.memory import release_free_memory, require_bytes
from qwen25vl.model.attention import Implementation
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.positions import MropeRule
from qwen25vl.progress import Progress

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


Model = TypeVar("Model", bound=Qwen2_5_VLCausalModel)
MakeModel = Callable[[Qwen2_5_VLConfig, Implementation, MropeRule], Model]


@dataclass(frozen=True)
class LoadOptions:
    """How to load. dtype: None takes the checkpoint's; scheme: how to quantise, if at all;
    left_out: how the names of tensors begin that are not wanted; config: instead of config.json;
    is_own: whether that is the caller's, which the tensors must fit in every number."""

    dtype: torch.dtype | None
    device: torch.device
    attn_implementation: Implementation
    scheme: Scheme | None
    mrope: MropeRule
    left_out: tuple[str, ...] = ()
    config: Qwen2_5_VLConfig | None = None
    is_own: bool = False


def load_folder(
    folder: Path, make_model: MakeModel[Model], how: LoadOptions, progress: Progress | None = None
) -> Model:
    """Load a checkpoint folder into a model of the given class, or that a function makes.

    progress: called with ("load", bytes done, total bytes); without it a bar is shown on stderr if
    that is a terminal. Raises UsageError for options that do not fit the checkpoint,
    CheckpointError (ConfigError, TensorError) and OutOfMemoryError.
    """
    config = how.config or Qwen2_5_VLConfig.from_pretrained(folder)
    quantised = stored_format(config, folder)
    map_large_buffers()
    if how.device.type == "cpu":
        library.announce()
    # NOTE not in inference mode: else the weights could not be trained, nor their changes noticed
    with torch.inference_mode(False):
        checkpoint = Checkpoint(folder)
        if not how.is_own:
            config = settle_config(config, checkpoint)
        model = make_on_meta(config, checkpoint, how, make_model)
        checkpoint.leave_out(how.left_out)
        if quantised is not None:
            quantised.expect(model, checkpoint)
            if how.scheme is not None and not covered_linears(model, how.scheme):
                raise UsageError(
                    f"{folder} is already quantised; load it without asking for "
                    f"{how.scheme.bits} bits"
                )
        turn_patches(model, checkpoint)
        checkpoint.match(model)
        in_few_bits = quantised is not None or how.scheme is not None
        dtype = how.dtype or stored_dtype(config, checkpoint)
        chosen = choose_dtype(dtype, how.device, in_few_bits)
        with terminal_bar() as bar:
            plan = plan_loading(model, checkpoint, chosen, how.device, how.scheme)
            warn_dequantised(checkpoint, plan)
            read_weights(model, checkpoint, plan, how.device, progress or bar)
        is_whole = not how.left_out
        if is_whole:
            add_int8_head(model)
    release_free_memory()  # what quantising left on the heap
    if is_whole:
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval()


def make_on_meta(
    config: Qwen2_5_VLConfig, checkpoint: Checkpoint, how: LoadOptions, make_model: MakeModel[Model]
) -> Model:
    """A model of a checkpoint's sizes, without memory.

    Raises ConfigError for sizes that no file of this length can have, before so many layers are
    made, or that make no tensors.
    """
    path = checkpoint.folder / "config.json"
    depths = {"num_hidden_layers": config.text_config.num_hidden_layers}
    depths["vision_config.depth"] = config.vision_config.depth
    for name, depth in depths.items():
        if depth > len(checkpoint.stored):
            number = len(checkpoint.stored)
            raise ConfigError(f"{path}: {name} is {depth}, but there are only {number} tensors")
    try:
        with torch.device("meta"), SkipInitialisation():
            return make_model(config, how.attn_implementation, how.mrope)
    except (RuntimeError, TypeError, OverflowError) as error:  # torch's, of sizes beyond its range
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"{path}: there is no model of these sizes: {reason}") from None


class SkipInitialisation(TorchFunctionMode):
    """Let torch.nn.init do nothing: on "meta" there is nothing to fill,
    and trying it loads torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


def read_weights(
    model: Qwen2_5_VLCausalModel,
    checkpoint: Checkpoint,
    plan: LoadPlan,
    device: torch.device,
    progress: Progress,
) -> None:
    """Give every parameter and packed weight of a model on "meta" its tensor; quantise each layer
    of the plan as soon as its weight is there."""
    require_bytes(plan.num_bytes, device, f"loading {checkpoint.folder}")
    error = RoundingError()
    done, total = 0, sum(checkpoint.stored[key].num_bytes for key in plan.dtypes)
    for path in [path for path, _ in model.named_modules()]:
        module = model.get_submodule(path)
        for name, old in tensors_of(module):
            key = f"{path}.{name}"
            if key not in plan.dtypes:
                continue
            tensor = read_tensor(checkpoint, key, plan, device)
            setattr(module, name, nn.Parameter(tensor) if isinstance(old, nn.Parameter) else tensor)
            done += checkpoint.stored[key].num_bytes
            progress("load", done, total)
        if path in plan.layers:
            assert isinstance(module, nn.Linear)
            layer = quantise(module, plan.layers[path])
            if checkpoint.stored[f"{path}.weight"].form:
                error.add(module, layer)
            model.set_submodule(path, layer)
    error.warn(checkpoint.folder)


def tensors_of(module: nn.Module) -> list[tuple[str, torch.Tensor]]:
    """A module's own parameters and buffers."""
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def read_tensor(
    checkpoint: Checkpoint, key: str, plan: LoadPlan, device: torch.device
) -> torch.Tensor:
    if key in plan.mapped:
        return checkpoint.read(key)
    return checkpoint.read_once(key, plan.dtypes[key]).to(device, plan.dtypes[key])


@contextmanager
def terminal_bar(name: str = "Loading") -> Iterator[Progress]:
    """A progress function that draws on a terminal's stderr, if it takes longer than a second."""
    is_dumb = os.environ.get("TERM") == "dumb"  # it cannot write over a line
    with tqdm(
        desc=name, unit="B", unit_scale=True, delay=1, leave=False, disable=is_dumb or None
    ) as bar:

        def report(stage: str, done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield report


def stored_dtype(config: Qwen2_5_VLConfig, checkpoint: Checkpoint) -> torch.dtype:
    """config.json's dtype, or the weights' own where it names none."""
    if config.dtype in (None, "auto", "float64"):
        dtype = checkpoint.stored[EMBEDDINGS].dtype
        return torch.float32 if dtype == torch.float64 else dtype
    if config.dtype not in DTYPES:
        raise CheckpointError(
            f"config.json gives the dtype {config.dtype!r}; give dtype=, one of {', '.join(DTYPES)}"
        )
    return DTYPES[config.dtype]


def choose_dtype(dtype: torch.dtype, device: torch.device, in_few_bits: bool) -> torch.dtype:
    """The dtype to compute in: never float16 on a CPU. Where weights are in 8 or 4 bits it is
    bfloat16 instead, which the kernels take and which needs no more memory."""
    if dtype != torch.float16 or device.type != "cpu":
        return dtype
    instead = "bfloat16" if in_few_bits else "float32 (bfloat16 takes half the memory)"
    warnings.warn(f"float16 overflows in this model on a CPU: computing in {instead}", stacklevel=4)
    return torch.bfloat16 if in_few_bits else torch.float32
