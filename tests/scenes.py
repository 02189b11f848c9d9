"""Random prompts for tests: text, pictures and clips as ids, grids and pixels,
without a processor."""

from dataclasses import dataclass, field

import torch

IMAGE, VIDEO, START, END = 151655, 151656, 151652, 151653


@dataclass
class Prompt:
    """One sequence and its media; `image` and `video` add a slot, `text` adds words."""

    ids: list[int] = field(default_factory=lambda: [151644])
    image_grids: list[tuple[int, int, int]] = field(default_factory=list)
    video_grids: list[tuple[int, int, int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def text(self, *ids: int) -> "Prompt":
        self.ids += ids
        return self

    def image(self, h: int, w: int) -> "Prompt":
        self.image_grids.append((1, h, w))
        self.ids += [START] + [IMAGE] * (h * w // 4) + [END]
        return self

    def video(self, t: int, h: int, w: int, seconds: float = 1.0) -> "Prompt":
        self.video_grids.append((t, h, w))
        self.seconds.append(seconds)
        self.ids += [START] + [VIDEO] * (t * h * w // 4) + [END]
        return self


def pixels(grids: list[tuple[int, int, int]], seed: int = 0) -> torch.Tensor:
    """Noise patches [N, 1176] for grids."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(sum(t * h * w for t, h, w in grids), 1176, generator=generator)


def model_inputs(
    *prompts: Prompt, padding_side: str = "left", seed: int = 0
) -> dict[str, torch.Tensor]:
    """Pad prompts into one batch, with the pixels of all their media; prompt i's pixels depend on
    seed + i alone."""
    length = max(len(p.ids) for p in prompts)
    ids = torch.full((len(prompts), length), 151643)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        where = (
            slice(length - len(prompt.ids), None)
            if padding_side == "left"
            else slice(0, len(prompt.ids))
        )
        ids[row, where] = torch.tensor(prompt.ids)
        mask[row, where] = 1
    inputs = {"input_ids": ids, "attention_mask": mask}
    if images := [grid for p in prompts for grid in p.image_grids]:
        inputs["image_grid_thw"] = torch.tensor(images)
        inputs["pixel_values"] = torch.cat(
            [pixels(p.image_grids, seed + i) for i, p in enumerate(prompts)]
        )
    if videos := [grid for p in prompts for grid in p.video_grids]:
        inputs["video_grid_thw"] = torch.tensor(videos)
        inputs["pixel_values_videos"] = torch.cat(
            [pixels(p.video_grids, seed + 50 + i) for i, p in enumerate(prompts)]
        )
        inputs["second_per_grid_ts"] = torch.tensor([s for p in prompts for s in p.seconds])
    return inputs


def token_types(input_ids: torch.Tensor) -> torch.Tensor:
    """What transformers 5 calls mm_token_type_ids: 1 for pictures, 2 for videos."""
    return (input_ids == IMAGE).long() + 2 * (input_ids == VIDEO).long()


def mixed_prompts() -> list[Prompt]:
    """Eight conversations: text alone, pictures with ragged windows, clips, both, several."""
    return [
        Prompt().text(10, 20, 30, 40),
        Prompt().text(11, 12).image(10, 14).text(13),
        Prompt().image(4, 4).text(5, 6).image(16, 8).text(7, 8, 9),
        Prompt().text(3).video(3, 6, 8, 1.0).text(21, 22, 23),
        Prompt().image(6, 20).text(1).video(2, 4, 4, 0.5).text(2, 3),
        Prompt().video(4, 4, 6, 2.0).text(9).video(2, 8, 4, 0.25).image(2, 2).text(100, 200),
        Prompt().text(*range(300, 340)),
        Prompt().text(77).image(18, 18).text(78, 79),
    ]
