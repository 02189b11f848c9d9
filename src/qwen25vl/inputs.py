"""ModelInputs: the parcel that processing packs and model and generation open."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Union

if TYPE_CHECKING:
    import torch

Grid = tuple[int, int, int]  # a picture or clip in patches: frames, height, width
PIXEL_KEYS = ("pixel_values", "pixel_values_videos")


@dataclass(frozen=True)
class MediaItem:
    """One picture or video of a request, in the order of the prompt.

    Sizes are (height, width) in pixels; `original_size` is the picture as given (after its EXIF
    rotation), `model_size` what the model sees and answers in. `num_tokens` counts visual tokens.
    `digest` is equal for equal pixels that are prepared in the same way; None where it was not
    computed. The source of a video is the file or the frames that its frames were chosen from, by
    `frame_numbers`. Of a page of a document, `page` is its number, from 1, and `page_size` its
    (height, width) in points; its original size is the one at which it was rendered.
    """

    kind: Literal["image", "video"]
    name: str
    conversation: int
    original_size: tuple[int, int]
    model_size: tuple[int, int]
    num_tokens: int
    num_frames: int = 1
    seconds_per_grid: float | None = None
    digest: bytes | None = field(default=None, repr=False, compare=False)
    source_fps: float | None = None
    num_source_frames: int = 1
    frame_numbers: Sequence[int] = field(default=(), repr=False, compare=False)
    page: int | None = None
    page_size: tuple[float, float] | None = None


class DeferredPatches:
    """Patches [n, width] of a picture or clip that are computed only if they are read: its visual
    tokens are known already, and will probably still be when they are needed."""

    def __init__(
        self, shape: tuple[int, int], dtype: torch.dtype, compute: Callable[[], torch.Tensor]
    ) -> None:
        self.shape, self.dtype, self.compute = shape, dtype, compute

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> DeferredPatches:
        """Itself: whoever reads them converts them."""
        return self


Part = Union["torch.Tensor", DeferredPatches]


class Patches:
    """Patches of several pictures or clips, a tensor [n, 1176] of each, never joined into one.

    Reading removes them: `take` gives up its references, so that the encoder can free patches as
    soon as they are embedded. They can therefore be used once.
    """

    def __init__(self, parts: Iterable[Part]) -> None:
        self.parts = deque(parts)

    def __len__(self) -> int:
        """The number of patches left."""
        return sum(map(len, self.parts))

    @property
    def shape(self) -> tuple[int, int]:
        return len(self), self.parts[0].shape[1] if self.parts else 0

    @property
    def itemsize(self) -> int:
        return self.parts[0].itemsize if self.parts else 0

    def take(self, num_patches: int) -> list[torch.Tensor]:
        """Remove and return the next patches: views of the tensors that held them."""
        parts = self.take_parts(num_patches)
        return [part.compute() if isinstance(part, DeferredPatches) else part for part in parts]

    def take_parts(self, num_patches: int) -> list[Part]:
        """`take`, without computing what is deferred and taken as a whole."""
        taken: list[Part] = []
        while num_patches > 0:
            part = self.parts.popleft()
            if isinstance(part, DeferredPatches) and len(part) > num_patches:
                part = part.compute()
            if not isinstance(part, DeferredPatches):
                if len(part) > num_patches:
                    self.parts.appendleft(part[num_patches:])
                part = part[:num_patches]
            taken.append(part)
            num_patches -= len(part)
        return taken

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> Patches:
        """The same on a device, in a dtype.
        The tensors move one by one and leave these patches empty."""
        if all(part.to(device=device, dtype=dtype) is part for part in self.parts):
            return self
        return Patches(
            [self.parts.popleft().to(device=device, dtype=dtype) for _ in range(len(self.parts))]
        )


class ModelInputs(MutableMapping[str, Any]):
    """A mapping with the keys that `generate(**inputs)` takes. Its items are its attributes.

    input_ids, attention_mask: [B, L] int64, padded; pixel_values: [num_patches, 1176] float32 of
    all pictures, or `Patches` where they are used once; image_grid_thw: [num_pictures, 3] int64;
    pixel_values_videos, video_grid_thw: the same for videos; second_per_grid_ts: [num_videos]
    float32. Of these a missing key reads as None by its attribute. Any other key may be added, such
    as labels. `media` is beside the mapping. The first argument may also be a mapping of all items.
    """

    __slots__ = ("__dict__", "media")
    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    pixel_values: torch.Tensor | Patches | None = None
    image_grid_thw: torch.Tensor | None = None
    pixel_values_videos: torch.Tensor | Patches | None = None
    video_grid_thw: torch.Tensor | None = None
    second_per_grid_ts: torch.Tensor | None = None
    media: tuple[MediaItem, ...]

    def __init__(
        self,
        input_ids: torch.Tensor | Mapping[str, Any] | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | Patches | None = None,
        image_grid_thw: torch.Tensor | None = None,
        pixel_values_videos: torch.Tensor | Patches | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        *,
        media: Sequence[MediaItem] = (),
        **others: Any,
    ) -> None:
        self.media = tuple(media)
        given = {"attention_mask": attention_mask, "pixel_values": pixel_values}
        given |= {"image_grid_thw": image_grid_thw, "pixel_values_videos": pixel_values_videos}
        given |= {"video_grid_thw": video_grid_thw, "second_per_grid_ts": second_per_grid_ts}
        self.update(input_ids if isinstance(input_ids, Mapping) else {"input_ids": input_ids})
        self.update({key: value for key, value in given.items() if value is not None})
        self.update(others)
        for key in [key for key, value in self.items() if value is None]:
            del self[key]

    def __repr__(self) -> str:
        shown = [f"{key}={brief(value)}" for key, value in self.items()]
        return f"ModelInputs({', '.join(shown)}, media=({brief_media(self.media)}))"

    def __getitem__(self, key: str) -> Any:
        return vars(self)[key]

    def __setitem__(self, key: str, value: Any) -> None:
        vars(self)[key] = value

    def __delitem__(self, key: str) -> None:
        del vars(self)[key]

    def __iter__(self) -> Iterator[str]:
        return iter(vars(self))

    def __len__(self) -> int:
        return len(vars(self))

    @property
    def data(self) -> dict[str, Any]:
        """The items as a dictionary; changing it changes them."""
        return vars(self)

    def to(
        self,
        device: torch.device | torch.dtype | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        non_blocking: bool = False,
    ) -> ModelInputs:
        """Move to a device, and cast pixels to a dtype, which may also stand alone;
        ids and grids keep theirs. What is no tensor stays as it is."""
        import torch

        if isinstance(device, torch.dtype):
            if dtype is not None:
                raise TypeError(f"to({device}, {dtype!r}): the device comes before the dtype")
            device, dtype = None, device
        moved: dict[str, Any] = {}
        for key, value in self.items():
            own = dtype if key in PIXEL_KEYS else None
            if isinstance(value, torch.Tensor):
                moved[key] = value.to(device, own, non_blocking)
            else:
                moved[key] = value.to(device, own) if isinstance(value, Patches) else value
        return ModelInputs(moved, media=self.media)


def brief_media(media: Sequence[MediaItem]) -> str:
    """The first pictures and videos by name, and how many more there are."""
    names = [f"{item.kind} {item.name}" for item in media[:3]]
    return ", ".join([*names, *([f"{len(media) - 3} more"] if len(media) > 3 else [])])


def brief(value: Any) -> str:
    """A short repr: type and shape of a tensor, and how many of what a tuple of them holds."""
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, tuple | list) and value and hasattr(value[0], "shape"):
        return f"{len(value)} × {brief(value[0])}"
    return repr(value)
