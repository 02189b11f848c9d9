"""The ecosystem's pipeline: the same calls and the same answers as
`transformers.pipeline("image-text-to-text")`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen25vl.demo import FOLDER as DEMO_FOLDER
from qwen25vl.demo import folder_on_disk
from qwen25vl.ecosystem.image_text_to_text import TASK, ImageTextToTextPipeline
from qwen25vl.errors import UsageError

if TYPE_CHECKING:
    import torch

    from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
    from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
    from qwen25vl.ecosystem.torchao_config import TorchAoConfig
    from qwen25vl.model.attention import Implementation


def pipeline(
    task: str = TASK,
    model: str | Path | Qwen2_5_VLForConditionalGeneration | None = None,
    processor: str | Path | Qwen2_5_VLProcessor | None = None,
    *,
    device: int | str | torch.device | None = None,
    device_map: str | torch.device | dict[str, str] | None = None,
    dtype: torch.dtype | str = "auto",
    torch_dtype: torch.dtype | str | None = None,
    attn_implementation: Implementation = "sdpa",
    quantization_config: TorchAoConfig | str | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    use_fast: bool | None = None,
    **options: Any,
) -> ImageTextToTextPipeline:
    """Load a model and its processor for one task.

    model: a folder, a hub name or a loaded model (then a processor must come with it); without one,
    the built-in demo model. device: torch's name of it, a CUDA device's number, or −1 for the CPU;
    device_map and the rest as in `AutoModelForImageTextToText.from_pretrained`. Raises UsageError
    for another task or a meaningless combination, OptionError for an unknown option.
    """
    from qwen25vl.load_options import check_options

    check_options(options, pipeline)
    if task != TASK:
        raise UsageError(f"there is no pipeline {task!r}; only {TASK!r} is supported")
    if device is not None and device_map is not None:
        raise UsageError("give either device or device_map")
    source = folder_on_disk(DEMO_FOLDER) if model is None else model
    hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
    hub["local_files_only"] = local_files_only
    if processor is None:
        if not isinstance(source, str | Path):
            raise UsageError("a loaded model needs its processor: pipeline(task, model, processor)")
        processor = source
    if isinstance(processor, str | Path):
        from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor

        processor = Qwen2_5_VLProcessor.from_pretrained(processor, use_fast=use_fast, **hub)
    if isinstance(source, str | Path):
        from qwen25vl.ecosystem.auto import load_model

        hub |= {
            "attn_implementation": attn_implementation,
            "quantization_config": quantization_config,
        }
        where = device_map if device is None else device_of_number(device)
        source = load_model(source, dtype=dtype, torch_dtype=torch_dtype, device_map=where, **hub)
    return ImageTextToTextPipeline(source, processor)


def device_of_number(device: int | str | torch.device) -> str | torch.device:
    """A number is a CUDA device, as in the ecosystem; without CUDA it is the CPU, which is said."""
    import torch

    if not isinstance(device, int):
        return device
    if device >= 0 and not torch.cuda.is_available():
        print(
            f"qwen25vl: device={device} is a CUDA device and there is none; the CPU is used",
            file=sys.stderr,
        )
    return f"cuda:{device}" if device >= 0 and torch.cuda.is_available() else "cpu"
