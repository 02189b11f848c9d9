"""Pillow's process-wide switches, kept from deciding what this package decodes."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from PIL import Image, ImageFile


class Off:
    """False, and told apart from every other False."""

    def __bool__(self) -> bool:
        return False


# An object of its own, so that `is` tells it from another library's value.
NO_LIMIT = int("1" + "0" * 30)


class PillowSwitches:
    """LOAD_TRUNCATED_IMAGES accepts half pictures, MAX_IMAGE_PIXELS refuses pictures; programs set
    them at will.

    Where their values are Pillow's own, or do no harm here, nothing is touched. A value that is in
    the way is put aside while any thread decodes here, and put back by the last one, unless the
    program has set another meanwhile. Pillow has one value for all threads: while it is put aside,
    the program's own decoding sees this one.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.users = 0
        self.put_aside: dict[tuple[ModuleType, str], Any] = {}
        self.usual_limit = 89_478_485  # Pillow's own; it refuses at the double

    @contextmanager
    def __call__(self, max_pixels: int = 0) -> Iterator[None]:
        """max_pixels: what is to be decoded, where that is more than Pillow's own limit."""
        with self.lock:
            self.users += 1
            if ImageFile.LOAD_TRUNCATED_IMAGES:
                self.replace(ImageFile, "LOAD_TRUNCATED_IMAGES", Off())
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and limit < max(self.usual_limit, max_pixels // 2):
                self.replace(Image, "MAX_IMAGE_PIXELS", NO_LIMIT)
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    self.restore()

    def replace(self, module: ModuleType, name: str, value: Any) -> None:
        self.put_aside[module, name] = getattr(module, name)
        setattr(module, name, value)

    def restore(self) -> None:
        for (module, name), found in self.put_aside.items():
            value = getattr(module, name)
            if isinstance(value, Off) or value is NO_LIMIT:
                setattr(module, name, found)
        self.put_aside.clear()


pillow_switches = PillowSwitches()
