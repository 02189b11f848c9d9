"""Pictures of any Pillow mode and arrays of any type as RGB of 8 bits:
the tables of docs/media.md."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from PIL import Image

from qwen25vl.errors import MediaFormatError, MediaWarning

ARRAY_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}
DARK_LIMIT = 4096  # of 65535: a sixteenth of white, as samples of 10 or 12 bits have it


def to_rgb(picture: Image.Image) -> Image.Image:
    """The table of modes."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):
        return deep_to_rgb(picture)
    if picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture), nan=0.0).clip(0, 255)
        return Image.fromarray(to_uint8(values, "")).convert("RGB")
    if picture.mode == "LAB":
        return lab_to_rgb(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    transparent = picture.info.get("transparency")
    if picture.mode == "RGB" and isinstance(transparent, tuple) and max(transparent) > 255:
        picture = picture.copy()  # an open PNG of 16 bits, of which Pillow keeps the upper 8
        picture.info["transparency"] = tuple(value >> 8 for value in transparent)
    if picture.mode == "La":  # Pillow has no way from it to RGBA but through LA
        picture = picture.convert("LA")
    if picture.mode != "RGBA":
        picture = picture.convert("RGBA")
    on_white = Image.new("RGB", picture.size, "white")
    on_white.paste(picture, mask=picture.getchannel("A"))
    return on_white


def deep_to_rgb(picture: Image.Image) -> Image.Image:
    """Modes I and I;16, the latter also with a transparent level."""
    values = np.asarray(picture).astype(np.int32).clip(0, 65535)
    is_deep = picture.mode != "I" or values.max() > 255
    levels = np.asarray((values + 128) // 257 if is_deep else values, dtype=np.uint8)
    transparent = picture.info.get("transparency")
    if isinstance(transparent, int):
        levels = np.where(values == transparent, np.uint8(255), levels)
    return Image.fromarray(levels).convert("RGB")


def lab_to_rgb(picture: Image.Image) -> Image.Image:
    """CIE L*a*b* of white point D50, as TIFF stores it, through Little CMS."""
    from PIL import ImageCms

    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(*profiles, "LAB", "RGB")
    result = ImageCms.applyTransform(picture, transform)
    if result is None:
        raise ValueError("no transform from LAB to RGB")
    return result


def picture_from_array(array: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    """A picture of mode L, LA, RGB or RGBA.
    Raises MediaFormatError for other shapes, values and types.
    """
    channels_first = isinstance(array, torch.Tensor)
    if isinstance(array, torch.Tensor):
        check_dense(array, name)
    if array.ndim == 2:
        array = array[..., None]
        channels_first = False
    if array.ndim != 3:
        wanted = "a picture has [H, W], [H, W, C] or [C, H, W]"
        raise MediaFormatError(f"{name} has {array.ndim} dimensions; {wanted}")
    if 0 in array.shape:
        raise MediaFormatError(f"{name} has no pixels")
    first, last = array.shape[0] in ARRAY_MODES, array.shape[-1] in ARRAY_MODES
    if not first and not last:
        wanted = "expected [H, W, C] or [C, H, W]"
        raise MediaFormatError(f"{name} has no side of 1 to 4 channels; {wanted}")
    values = to_uint8(array, name)
    if (first and channels_first) or not last:
        values = values.transpose(1, 2, 0)
    mode = ARRAY_MODES[values.shape[-1]]
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if mode == "L" else values), mode)


def to_uint8(array: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """Pixel values of any real type as uint8 0..255, of the same shape.

    Raises MediaFormatError for values outside of 0..255 (uint16:
    0..65535), and for types that are no numbers.
    """
    values = as_numpy(array, name)
    if values.dtype.kind not in "buif":
        wanted = "pixels are bool, whole numbers or floats"
        raise MediaFormatError(f"{name} has values of type {values.dtype}; {wanted}")
    if values.dtype == np.uint8:
        return values
    if values.dtype == np.bool_:
        return values.astype(np.uint8) * 255
    if values.size == 0:
        return values.astype(np.uint8)
    low, high = values.min(), values.max()
    if values.dtype == np.uint16 and high > 255:
        if high < DARK_LIMIT:
            warnings.warn(
                f"{name} has no value above {high} of uint16's 65535 and will look nearly "
                "black; scale it first",
                MediaWarning,
                stacklevel=2,
            )
        return np.asarray((values.astype(np.uint32) + 128) // 257, dtype=np.uint8)
    if not (low >= 0 and high <= 255):  # also refuses NaN
        wanted = "pixels are 0..255, or floats 0..1"
        raise MediaFormatError(f"{name} has values from {low} to {high}; {wanted}")
    if values.dtype.kind != "f":
        return values.astype(np.uint8)
    return np.asarray(np.rint(values * 255 if high <= 1 else values), dtype=np.uint8)


def as_numpy(array: np.ndarray | torch.Tensor, name: str) -> np.ndarray[Any, Any]:
    """In the machine's byte order."""
    if isinstance(array, np.ndarray):
        return array.astype(array.dtype.newbyteorder("="), copy=False)
    check_dense(array, name)
    tensor = array.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().numpy()


def check_dense(tensor: torch.Tensor, name: str) -> None:
    """Raise MediaFormatError for a tensor that does not hold its values one by one."""
    if tensor.is_meta:
        raise MediaFormatError(f"{name} is a tensor on the device meta, which has no values")
    if tensor.is_quantized:
        raise MediaFormatError(f"{name} is a quantised tensor; give its dequantize()")
    if tensor.layout != torch.strided:
        raise MediaFormatError(f"{name} is a tensor of layout {tensor.layout}; give its to_dense()")
