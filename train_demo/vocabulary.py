"""The demo's own byte-level BPE: all bytes, the merges its texts need,
and the official special token names.

python -m train_demo.vocabulary FOLDER
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from qwen25vl.single_file.official import CHAT_TEMPLATE, SPLIT_PATTERN
from train_demo.clips import ask_clip, make_clip
from train_demo.pairs import make_pair
from train_demo.questions import ABILITIES, Turn, converse
from train_demo.scenes import Scene, make_scene
from train_demo.texts import READ, READ_TABLE

NUM_BASE_TOKENS = 1024  # 256 bytes and 768 merges
SYSTEM = "You are a helpful assistant."
SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> "
    "<|box_end|> <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> "
    "<|image_pad|> <|video_pad|>"
).split()
ADDED = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> "
    "<|repo_name|> <|file_sep|>"
).split()


def with_boxes(scene: Scene) -> Scene:
    """As if it had been drawn."""
    boxes = tuple(
        (thing.x, thing.y, thing.x + thing.diameter, thing.y + thing.diameter)
        for thing in scene.things
    )
    return replace(scene, boxes=boxes)


def train_tokenizer(num_scenes: int = 6000) -> Tokenizer:
    """Merges learned from what is said about scenes;
    special tokens come after the base, in the official order.

    Words that are read from pictures are left out: letter by letter they are easier to learn.
    """
    rng = Random(0)
    turns: list[Turn] = []
    for _ in range(num_scenes):
        turns += converse(
            rng, with_boxes(make_scene(rng, 196, 196, rng.choice((1, 2, 3)), 0.3)), tuple(ABILITIES)
        )
        turns += make_pair(rng, 196, 196)[1]
        turns += ask_clip(rng, make_clip(rng, 196, 196))
    texts = [
        SYSTEM,
        "system\n",
        "user\n",
        "assistant\n",
        "Picture 1: ",
        "Video 1: ",
        *READ,
        *READ_TABLE,
    ] * (num_scenes // 4)
    tokenizer = Tokenizer(models.BPE(fuse_unk=False, byte_fallback=False))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=NUM_BASE_TOKENS, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*texts, *(text for turn in turns for text in turn[:2])], trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in ADDED])
    return tokenizer


def write_vocabulary(tokenizer: Tokenizer, folder: Path) -> None:
    """tokenizer.json, tokenizer_config.json, vocab.json, merges.txt and chat_template.json."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    model = json.loads(tokenizer.to_str())["model"]
    write_json(folder / "vocab.json", model["vocab"])
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word"), False)
    write_json(folder / "tokenizer_config.json", {
        "add_bos_token": False, "add_prefix_space": False, "bos_token": None,
        "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": None,
        "errors": "replace", "model_max_length": 8192, "clean_up_tokenization_spaces": False,
        "split_special_tokens": False, "tokenizer_class": "Qwen2Tokenizer",
        "additional_special_tokens": SPECIAL[1:],
        "added_tokens_decoder": {
            str(tokenizer.token_to_id(token)): {
                "content": token, **flags, "special": token in SPECIAL
            }
            for token in SPECIAL + ADDED
        },
    })  # fmt: skip
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
