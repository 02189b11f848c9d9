"""The parts of a pipeline as code for transformers gives them: the number of a device, a tokenizer
beside a processor."""

from __future__ import annotations

import sys
from typing import Any

import torch

from qwen25vl.ecosystem.pretrained import parse_dtype
from qwen25vl.errors import UsageError


def device_of_number(device: int | str | torch.device) -> str | torch.device:
    """A number is a CUDA device, as in the ecosystem; without CUDA it is the CPU, which is said."""
    if not isinstance(device, int):
        return device
    if device >= 0 and not torch.cuda.is_available():
        print(
            f"qwen25vl: device={device} is a CUDA device and there is none; the CPU is used",
            file=sys.stderr,
        )
    return f"cuda:{device}" if device >= 0 and torch.cuda.is_available() else "cpu"


def place(model: Any, device: int | str | torch.device) -> Any:
    """A model on a device."""
    return model.to(device_of_number(device))


def check_dtype(model: Any, dtype: torch.dtype | str | None) -> None:
    """Refuse another dtype than the model has."""
    wanted = None if dtype is None else parse_dtype(dtype)
    if wanted not in (None, model.dtype):
        raise UsageError(f"dtype is {wanted}, but the model has {model.dtype}; load it in that one")


def with_parts(processor: Any, tokenizer: Any, image_processor: Any) -> Any:
    """A processor with another tokenizer or image processor. Raises UsageError for one of another
    kind."""
    if tokenizer is None and image_processor is None:
        return processor
    twin = type(processor)(
        image_processor or processor.image_processor,
        tokenizer or processor.tokenizer,
        processor.video_processor,
        processor.chat_template,
        folder=processor.folder,
    )
    twin.return_mm_token_type_ids = processor.return_mm_token_type_ids
    return twin
