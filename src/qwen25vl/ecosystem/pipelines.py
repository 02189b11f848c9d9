"""The ecosystem's pipeline: the same calls and the same answers as
`transformers.pipeline("image-text-to-text")`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from qwen25vl.demo import FOLDER as DEMO_FOLDER
from qwen25vl.demo import folder_on_disk
from qwen25vl.ecosystem.image_text_to_text import TASK, ImageTextToTextPipeline
from qwen25vl.errors import UsageError

if TYPE_CHECKING:
    import torch

    from qwen25vl.config import Qwen2_5_VLConfig
    from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
    from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
    from qwen25vl.ecosystem.torchao_config import Quantisation
    from qwen25vl.model.attention import Implementation


def pipeline(
    task: str = TASK,
    model: str | Path | Qwen2_5_VLForConditionalGeneration | None = None,
    processor: str | Path | Qwen2_5_VLProcessor | None = None,
    *,
    tokenizer: Any = None,
    image_processor: Any = None,
    device: int | str | torch.device | None = None,
    device_map: str | torch.device | dict[str, str] | None = None,
    dtype: torch.dtype | str | None = None,
    torch_dtype: torch.dtype | str | None = None,
    attn_implementation: Implementation | None = None,
    quantization_config: Quantisation = None,
    config: Qwen2_5_VLConfig | str | Path | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    use_fast: bool | None = None,
    **options: Any,
) -> ImageTextToTextPipeline:
    """Load a model and its processor for one task.

    model: a folder, a hub name or a loaded model (then a processor must come with it); without one,
    the built-in demo model. tokenizer, image_processor: instead of the processor's own; names of
    folders stand for a processor. device: torch's name of it, a CUDA device's number, or −1 for the
    CPU; device_map and the rest as in `AutoModelForImageTextToText.from_pretrained`, which also
    gets model_kwargs. options: of the call, for all calls that do not give them. Raises UsageError
    for another task or a meaningless combination, OptionError for an unknown option.
    """
    from qwen25vl.ecosystem.pipeline_options import call_options
    from qwen25vl.load_options import HARMLESS, check_options

    of_calls = options.keys() & {*call_options()} - HARMLESS.keys()
    ours = {name: options.pop(name) for name in of_calls}
    check_options(options, pipeline)
    if task != TASK:
        raise UsageError(f"there is no pipeline {task!r}; only {TASK!r} is supported")
    if device is not None and device_map is not None:
        raise UsageError("give either device or device_map")
    source = folder_on_disk(DEMO_FOLDER) if model is None else model
    hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
    hub["local_files_only"] = local_files_only
    parts, named = split_parts(tokenizer=tokenizer, image_processor=image_processor)
    processor = load_processor(processor or named, source, {"use_fast": use_fast, **hub})
    if isinstance(source, str | Path):
        from qwen25vl.ecosystem.auto import load_model
        from qwen25vl.ecosystem.pipeline_parts import device_of_number

        where = device_map if device is None else device_of_number(device)
        how = {"dtype": "auto" if dtype is None else dtype, "torch_dtype": torch_dtype, **hub}
        how |= {"attn_implementation": attn_implementation, "device_map": where, "config": config}
        how |= {"quantization_config": quantization_config, **(model_kwargs or {})}
        return ImageTextToTextPipeline(load_model(source, **how), processor, **parts, **ours)
    given: dict[str, Any] = {"device": device, "dtype": None if dtype == "auto" else dtype}
    return ImageTextToTextPipeline(
        source, processor, torch_dtype=torch_dtype, **given, **parts, **ours
    )


def split_parts(**parts: Any) -> tuple[dict[str, Any], str | Path | None]:
    """The parts that are objects, and the folder or hub name that is given in place of one."""
    names = [part for part in parts.values() if isinstance(part, str | Path)]
    objects = {name: part for name, part in parts.items() if not isinstance(part, str | Path)}
    return objects, names[0] if names else None


def load_processor(processor: Any, source: Any, options: dict[str, Any]) -> Qwen2_5_VLProcessor:
    """The processor given, that of a folder or hub name, or the model's."""
    if processor is None:
        if not isinstance(source, str | Path):
            raise UsageError("a loaded model needs its processor: pipeline(task, model, processor)")
        processor = source
    if isinstance(processor, str | Path):
        from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor

        return Qwen2_5_VLProcessor.from_pretrained(processor, **options)
    return cast("Qwen2_5_VLProcessor", processor)
