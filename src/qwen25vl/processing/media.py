"""Any source of a picture becomes RGB of 8 bits, its EXIF orientation applied.

docs/media.md says what becomes of each Pillow mode and each kind of array. Pillow's process-wide switches
MAX_IMAGE_PIXELS and LOAD_TRUNCATED_IMAGES have no influence on it.
"""

from __future__ import annotations

import io
import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from qwen25vl.errors import MediaFormatError, MediaSizeError, Qwen25VLError
from qwen25vl.processing.sources import load_bytes, source_name

__all__ = ["load_bytes", "load_picture", "source_name", "to_uint8"]

MAX_PIXELS = 178_956_970
MAX_PICTURE_BYTES = 1 << 30
EXIF_ORIENTATION = 0x0112
FORMATS = ("JPEG", "PNG", "WebP", "GIF", "BMP", "TIFF")
ARRAY_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def load_picture(source: Any, *, name: str | None = None) -> Image.Image:
    """Any source of a picture as a PIL picture of mode RGB; `name` is what errors call it.

    Raises MediaNotFoundError (nothing there), MediaFormatError (no picture, another format, cut off or damaged),
    MediaSizeError (more than 178,956,970 pixels, found before decoding), UsageError (no such kind of source).
    """
    name = name or source_name(source)
    if isinstance(source, np.ndarray | torch.Tensor):
        return to_rgb(picture_from_array(source, name))
    with strict_pillow(), refusing(name):
        picture = source if isinstance(source, Image.Image) else open_picture(source, name)
        check_size(*picture.size, name)
        picture.load()
        if picture.getexif().get(EXIF_ORIENTATION, 1) != 1:
            picture = ImageOps.exif_transpose(picture)
        return to_rgb(picture)


def open_picture(source: Any, name: str) -> Image.Image:
    """Read the header only; the content decides the format, not the name."""
    data = load_bytes(source, name=name, max_bytes=MAX_PICTURE_BYTES)
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise MediaFormatError(f"{name} is no picture, or in none of the formats {', '.join(FORMATS)}") from None


def check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise MediaSizeError(f"{name} claims {width}×{height} pixels; at most {MAX_PIXELS} are decoded")
    if width * height == 0:
        raise MediaFormatError(f"{name} has no pixels: {width}×{height}")


@contextmanager
def refusing(name: str) -> Iterator[None]:
    """Damaged files can raise anything from inside Pillow; to callers they are all one kind of error."""
    try:
        yield
    except (Qwen25VLError, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise MediaSizeError(f"{name} claims more than the {MAX_PIXELS} pixels that are decoded") from None
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise MediaFormatError(f"{name} is cut off or damaged: {reason}") from error


class StrictPillow:
    """Pillow's limit of pixels, its switch to accept cut-off files, its warnings and its log are process-wide.

    While anything is decoded here they have this module's values. Several threads may decode at once, so uses are
    counted: the first one in sets them, the last one out restores them.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.restore = ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self.lock:
            self.users += 1
            if self.users == 1:
                self.set(ImageFile, "LOAD_TRUNCATED_IMAGES", False)
                self.set(Image, "MAX_IMAGE_PIXELS", MAX_PIXELS // 2)  # Pillow warns there and refuses at the double
                self.restore.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=r"PIL\.")
                logger = logging.getLogger("PIL")
                self.restore.callback(logger.setLevel, logger.level)
                logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    self.restore.close()

    def set(self, module: ModuleType, name: str, value: Any) -> None:
        self.restore.callback(setattr, module, name, getattr(module, name))
        setattr(module, name, value)


strict_pillow = StrictPillow()


def to_rgb(picture: Image.Image) -> Image.Image:
    """The table in docs/media.md."""
    if picture.mode == "RGB" and "transparency" not in picture.info:
        return picture
    if picture.mode.startswith("I"):
        values = np.asarray(picture).astype(np.int32).clip(0, 65535)
        is_deep = picture.mode != "I" or values.max() > 255
        return Image.fromarray(to_uint8(values.astype(np.uint16 if is_deep else np.uint8), "")).convert("RGB")
    if picture.mode == "F":
        values = np.nan_to_num(np.asarray(picture), nan=0.0).clip(0, 255)
        return Image.fromarray(to_uint8(values, "")).convert("RGB")
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    picture = (picture.convert("LA") if picture.mode == "La" else picture).convert("RGBA")
    on_white = Image.new("RGB", picture.size, "white")
    on_white.paste(picture, mask=picture.getchannel("A"))
    return on_white


def picture_from_array(array: np.ndarray | torch.Tensor, name: str) -> Image.Image:
    channels_first = isinstance(array, torch.Tensor)
    if array.ndim == 2:
        array = array[..., None]
        channels_first = False
    if array.ndim != 3:
        raise MediaFormatError(f"{name} has {array.ndim} dimensions; a picture has [H, W], [H, W, C] or [C, H, W]")
    first, last = array.shape[0] in ARRAY_MODES, array.shape[-1] in ARRAY_MODES
    if not first and not last:
        raise MediaFormatError(f"{name} has no side of 1 to 4 channels; expected [H, W, C] or [C, H, W]")
    values = to_uint8(array, name)
    if (first and channels_first) or not last:
        values = values.transpose(1, 2, 0)
    check_size(values.shape[1], values.shape[0], name)
    mode = ARRAY_MODES[values.shape[-1]]
    return Image.fromarray(np.ascontiguousarray(values[..., 0] if mode == "L" else values), mode)


def to_uint8(array: np.ndarray | torch.Tensor, name: str) -> np.ndarray:
    """Pixel values of any type as uint8 0..255, of the same shape."""
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.uint16:
        return np.asarray((array.astype(np.uint32) + 128) // 257, dtype=np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if array.size == 0:
        return array.astype(np.uint8)
    low, high = array.min(), array.max()
    if not (low >= 0 and high <= 255):  # also refuses NaN
        raise MediaFormatError(f"{name} has values from {low} to {high}; pixels are 0..255, or floats 0..1")
    if not np.issubdtype(array.dtype, np.floating):
        return array.astype(np.uint8)
    return np.asarray(np.rint(array * 255 if high <= 1 else array), dtype=np.uint8)
