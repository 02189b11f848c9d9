"""A small model with few words, here and in transformers, on which peers' assertions about
generation are tried: it is fast, and both must give the same numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from scenes import pixels

from qwen25vl import Qwen2_5_VLForConditionalGeneration

VOCAB, START, STOP, IMAGE, VIDEO, END, PAD = 320, 300, 301, 303, 304, 310, 311
IDS = {
    "vision_start_token_id": START,
    "vision_end_token_id": STOP,
    "vision_token_id": 302,
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
}


@dataclass(frozen=True)
class Pair:
    """ours, theirs: the same weights in float32."""

    ours: Any
    theirs: Any

    def run(self, inputs: dict[str, Any], **options: Any) -> tuple[Any, Any]:
        """What both generate, without sampling unless the options say so."""
        options = {"do_sample": False, **options}
        return self.ours.generate(**inputs, **options), self.reference(inputs, **options)

    def reference(self, inputs: dict[str, Any], **options: Any) -> Any:
        ids = inputs.get("input_ids")
        types = {} if ids is None else {"mm_token_type_ids": (ids == IMAGE).long()}
        return self.theirs.generate(**inputs, **types, **options)


@pytest.fixture(scope="session", name="pair")
def pair_fixture(tokenizer_json: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Pair:
    from transformers import Qwen2_5_VLForConditionalGeneration as Reference

    folder = tmp_path_factory.mktemp("few_words")
    text = {"vocab_size": VOCAB, "num_hidden_layers": 2, "eos_token_id": END, "bos_token_id": 5}
    write_checkpoint(folder, tokenizer_json, tied=False, nested=True, seed=5, text=text)
    rewrite(folder / "config.json", **IDS)
    ends = {"eos_token_id": [END, PAD], "pad_token_id": PAD, "bos_token_id": 5}
    rewrite(folder / "generation_config.json", **ends)
    return Pair(
        Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32),
        Reference.from_pretrained(folder, dtype=torch.float32).eval(),
    )


def rewrite(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def ids_of(length: int, seed: int = 0) -> list[int]:
    """Random words, none of them a control token."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(10, 290, (length,), generator=generator).tolist()


def text_inputs(rows: int = 2, length: int = 8, seed: int = 0) -> dict[str, Any]:
    ids = torch.tensor([ids_of(length, seed + row) for row in range(rows)])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def picture_inputs(rows: int = 2, seed: int = 0, sides: tuple[int, int] = (4, 6)) -> dict[str, Any]:
    """A picture and a few words in each row."""
    height, width = sides
    slots = [START, *[IMAGE] * (height * width // 4), STOP]
    ids = torch.tensor([[7, *slots, *ids_of(5, seed + row)] for row in range(rows)])
    grids = [(1, height, width)] * rows
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels(grids, seed),
        "image_grid_thw": torch.tensor(grids),
    }


def padded(inputs: dict[str, Any], amount: int) -> dict[str, Any]:
    """The same rows with padding on the left."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    fill = torch.full((len(ids), amount), PAD)
    return {
        **inputs,
        "input_ids": torch.cat([fill, ids], dim=1),
        "attention_mask": torch.cat([torch.zeros_like(fill), mask], dim=1),
    }


def frequent_token(pair: Pair, inputs: dict[str, Any], place: int = 2) -> int:
    """A token that the greedy answer has at this place, so that it can be made an end."""
    written = pair.ours.generate(**inputs, do_sample=False, eos_token_id=-1, max_new_tokens=6)
    return int(written[0, inputs["input_ids"].shape[1] + place])
