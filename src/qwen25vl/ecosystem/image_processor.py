"""The ecosystem's processor of pictures: pictures to patches, and how many there will be."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, Unpack

from qwen25vl.arguments import refuse_unknown
from qwen25vl.ecosystem.encodings import Tensors, with_tensors
from qwen25vl.ecosystem.media_processor import MediaOptions, MediaProcessor
from qwen25vl.ecosystem.processor_files import find_folder, read_preparations
from qwen25vl.errors import UsageError
from qwen25vl.inputs import ModelInputs
from qwen25vl.processing.collate import join, join_grids
from qwen25vl.processing.image import check_number
from qwen25vl.processing.picture_file import MAX_DECODED_PIXELS
from qwen25vl.processing.prepare import prepare_picture
from qwen25vl.processing.prompt_media import image_part, pictures_of_entry


class Qwen2VLImageProcessor(MediaProcessor):
    """Call it with pictures. Its attributes are those of preprocessor_config.json."""

    default_size: ClassVar[Mapping[str, int]] = {
        "shortest_edge": 56 * 56,
        "longest_edge": 28 * 28 * 1280,
    }
    type_key: ClassVar[str] = "image_processor_type"
    file_name: ClassVar[str] = "preprocessor_config.json"
    model_input_names: ClassVar[list[str]] = ["pixel_values", "image_grid_thw"]
    _max_decoded_pixels: int = MAX_DECODED_PIXELS

    @property
    def max_decoded_pixels(self) -> int:
        """The area of the largest picture that is decoded at full size."""
        return self._max_decoded_pixels

    @max_decoded_pixels.setter
    def max_decoded_pixels(self, value: int) -> None:
        number = check_number("max_decoded_pixels", value, whole=True)
        self._max_decoded_pixels = int(number)

    @classmethod
    def from_pretrained(cls, name_or_folder: str | Path, **options: Any) -> Self:
        """Read a checkpoint's file. options: attributes to change, and revision, cache_dir,
        local_files_only, token. Raises CheckpointError, HubError or OptionError."""
        folder, changes = find_folder(name_or_folder, options)
        return cls.from_dict(read_preparations(folder)[0], **changes)

    def __call__(
        self, images: Any, *, return_tensors: Tensors = None, **options: Unpack[MediaOptions]
    ) -> ModelInputs:
        """pixel_values [N, 1176] and image_grid_thw [pictures, 3] of one picture, a list of them,
        lists of lists or an array of several.

        return_tensors: "np" gives arrays; "pt" and None tensors, as in the ecosystem. options:
        other values of the attributes for this call. Raises MediaError, UsageError.
        """
        refuse_unknown(options, MediaOptions.__annotations__)
        own = self.changed(dict(options))
        settings, limit = own.settings, self.max_decoded_pixels
        sources = [image_part(picture).source for picture in flatten_pictures(images)]
        if not sources:
            raise UsageError("images is empty; expected at least one picture")
        prepared = [prepare_picture(source, {}, settings, limit) for source in sources]
        inputs = ModelInputs(
            pixel_values=join(prepared, is_joined=True),
            image_grid_thw=join_grids(prepared),
            media=[each.item for each in prepared],
        )
        return with_tensors(inputs, return_tensors)

    preprocess = __call__

    def get_number_of_image_patches(
        self, height: int, width: int, images_kwargs: Mapping[str, Any] | None = None
    ) -> int:
        """How many patches a picture of this size becomes, under other values of the attributes."""
        settings = self.changed(picture_options(images_kwargs)).settings
        new_height, new_width = settings.model_size(height, width)
        return (new_height // settings.patch_size) * (new_width // settings.patch_size)


Qwen2VLImageProcessorFast = Qwen2VLImageProcessorPil = Qwen2VLImageProcessor
"""The ecosystem's names of its implementations; the only one here equals the fast one."""


class AutoImageProcessor:
    """The name under which code for transformers loads a Qwen2VLImageProcessor."""

    from_pretrained = Qwen2VLImageProcessor.from_pretrained


def flatten_pictures(images: Any) -> list[Any]:
    """All pictures in lists of lists."""
    found: list[Any] = []
    for entry in pictures_of_entry(images):
        found += flatten_pictures(entry) if isinstance(entry, list | tuple) else [entry]
    return found


def picture_options(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Those of the options that are attributes."""
    return {
        key: value for key, value in (given or {}).items() if key in MediaOptions.__annotations__
    }
