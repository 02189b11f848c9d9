"""What memory each of thirty requests is said to need beside the model, and what it then takes.

    python benchmarks/memory.py            # all; or the numbers of some of them

Each request runs in a process of its own, on a model with random weights whose layers are few and
wide. A small request before it loads the code and touches every weight. "Taken" is the peak of
resident memory (VmHWM, reset just before the request) over what was resident then; Linux only.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from PIL import Image

from qwen25vl import Qwen2_5_VLConfig, VisionLanguageModel
from qwen25vl.demo import FOLDER
from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
from qwen25vl.engine.admission import transient_bytes
from qwen25vl.engine.sequence import Sequence
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.measure.random_model import random_model
from qwen25vl.memory import process_bytes, release_free_memory

Model = Qwen2_5_VLForConditionalGeneration
Shape = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
# The text model's vocabulary, width, intermediate width, layers, query heads, key heads, and the
# halves of a head that turn with time, row and column; the vision encoder's width, intermediate
# width, heads.
SHAPES: dict[str, Shape] = {
    "narrow": ((32000, 512, 2048, 4, 8, 8), (8, 12, 12), (640, 1712, 8)),
    "middle": ((64000, 1024, 4864, 3, 16, 2), (8, 12, 12), (1024, 2736, 16)),
    "7b": ((152064, 3584, 18944, 2, 28, 4), (16, 24, 24), (1280, 3420, 16)),
}
DEPTH = 2  # blocks of the vision encoder; the last attends to whole frames

# pictures: their sides in pixels; clip: frames and side; words: of each prompt; new: tokens of each
# answer
REQUESTS: list[dict[str, Any]] = [
    {"pictures": [1400]},
    {"pictures": [1960]},
    {"pictures": [2660]},
    {"pictures": [1120, 1120, 840]},
    {"pictures": [980] * 6},
    {"pictures": [1680, 280, 280]},
    {"pictures": [1120, 1120], "visual_cache": True},
    {"pictures": [1680], "visual_cache": True, "precision": "int4"},
    {"clip": (16, 560)},
    {"clip": (64, 420)},
    {"clip": (8, 840), "pictures": [1120]},
    {"words": [3000]},
    {"words": [6000], "new": 32},
    {"words": [100], "new": 4000},
    {"words": [1500], "new": 300, "answers": 4},
    {"words": [500], "new": 100, "answers": 16},
    {"words": [500], "new": 400, "answers": 8, "lookup": 20},
    {"words": [1000] * 4, "new": 50},
    {"words": [150] * 24, "new": 60},
    {"words": [50], "new": 400, "logits": True},
    {"words": [50], "new": 150, "answers": 4, "logits": True},
    {"words": [2500], "precision": "int8"},
    {"words": [2500], "precision": "int4", "new": 300},
    {"words": [2000], "new": 1500, "lookup": 10},
    {"pictures": [1120], "precision": "float32"},
    {"words": [2500], "precision": "float32"},
    {
        "pictures": [560],
        "words": [500],
        "new": 100,
        "answers": 6,
        "precision": "float32",
        "logits": True,
    },
    {"pictures": [1400], "precision": "int8", "new": 200, "answers": 3},
    {"pictures": [1400], "precision": "int8+vision", "public": True},
    {"pictures": [1400, 1120], "public": True},
]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("numbers", nargs="*", type=int)
    parser.add_argument(
        "--one", type=int, help="run this request here and print its figures as JSON"
    )
    parser.add_argument("--shape", choices=SHAPES, default="narrow", help="widths of the model")
    arguments = parser.parse_args()
    if arguments.one is not None:
        print(json.dumps(run(SHAPES[arguments.shape], **REQUESTS[arguments.one])))
        return
    print(f"{'':3}{'stated':>9}{'taken':>9}{'ratio':>7}  MB; request")
    for number in arguments.numbers or range(len(REQUESTS)):
        command = [sys.executable, __file__, "--one", str(number), "--shape", arguments.shape]
        found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        stated, taken = found["stated"] / 1e6, found["taken"] / 1e6
        print(
            f"{number:2} {stated:9.1f}{taken:9.1f}{stated / taken:7.3f}  {REQUESTS[number]}",
            flush=True,
        )


def run(
    shape: Shape,
    pictures: list[int] = [],  # noqa: B006
    clip: tuple[int, int] | None = None,
    words: list[int] | None = None,
    new: int = 8,
    answers: int = 1,
    precision: str = "bfloat16",
    lookup: int = 0,
    visual_cache: bool = False,
    logits: bool = False,
    public: bool = False,
) -> dict[str, Any]:
    """Bytes stated before a request and bytes taken by it."""
    vlm = open_model(shape, precision, visual_cache)
    videos = [torch.randint(256, (clip[0], 3, clip[1], clip[1]), dtype=torch.uint8)] if clip else []
    images = [Image.effect_noise((side, side), 80).convert("RGB") for side in pictures]
    options: dict[str, Any] = {
        "max_new_tokens": new,
        "min_new_tokens": new,
        "num_return_sequences": answers,
    }
    options |= {"prompt_lookup_num_tokens": lookup, "max_repeated_tokens": 0}
    if answers > 1:
        options |= {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "seed": 0}
    if logits:
        options |= {"output_logits": True, "return_dict_in_generate": True}
    stated: list[int] = []
    arrive = vlm.model.engine.add
    vlm.model.engine.add = lambda given: (
        stated.append(call_bytes(vlm.model, given)) or arrive(given)
    )
    few = {**options, "max_new_tokens": 2, "min_new_tokens": 0}
    # in a thread of its own: what the kernels keep for the next call is that of the calling thread
    warm_up = Thread(target=ask, args=(vlm, [Image.new("RGB", (56, 56))], [], [3], True, few))
    warm_up.start()
    warm_up.join()
    release_free_memory()
    Path("/proc/self/clear_refs").write_text("5")
    before = resident()
    out = ask(vlm, images, videos, words or [5], public, options)
    taken = process_bytes()["peak"] - before
    del out
    return {"stated": stated[-1], "taken": taken}


def call_bytes(model: Model, sequences: list[Sequence]) -> int:
    """What the engine reserves for the prompts of a call and their answers, and the patches that it
    finds already made."""
    parts = [part for one in sequences for medium in one.media for part in medium.patches]
    patches = sum(len(part) * part.shape[1] * part.itemsize for part in parts)
    answers = [answer for one in sequences for answer in (one, *one.followers)]
    held = sum(answer.held_bytes for answer in answers)
    returned = sequences[0].outbox.bytes_to_come
    return patches + held + returned + transient_bytes(model, sequences)


def open_model(shape: Shape, precision: str, visual_cache: bool) -> VisionLanguageModel:
    (vocabulary, width, wide, layers, heads, kv_heads), sections, vision = shape
    demo = Qwen2_5_VLConfig.from_pretrained(FOLDER)
    text = replace(
        demo.text_config,
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=wide,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        rope_scaling=replace(demo.text_config.rope_scaling, mrope_section=sections),
        max_position_embeddings=65536,
    )
    vision_width, vision_wide, vision_heads = vision
    config = replace(
        demo,
        text_config=text,
        vision_config=replace(
            demo.vision_config,
            depth=DEPTH,
            hidden_size=vision_width,
            intermediate_size=vision_wide,
            num_heads=vision_heads,
            out_hidden_size=width,
            fullatt_block_indexes=(DEPTH - 1,),
        ),
    )
    is_float = precision == "float32"
    model = random_model(config, None if precision in ("float32", "bfloat16") else precision,
                         torch.float32 if is_float else torch.bfloat16)  # fmt: skip
    release_free_memory()  # what making the weights left on the heap
    processor = Qwen2_5_VLProcessor.from_pretrained(FOLDER, max_pixels=2**25)
    return VisionLanguageModel(
        model, processor, visual_cache=VisualCache(2**30) if visual_cache else None
    )


def ask(
    vlm: VisionLanguageModel,
    images: list[Any],
    videos: list[Any],
    words: list[int],
    public: bool,
    options: dict[str, Any],
) -> Any:
    """As `vlm.ask` does, but with every option of `generate` and a batch of prompts."""
    media = [{"type": "image", "image": image} for image in images]
    media += [{"type": "video", "video": video} for video in videos]
    chats = [
        [{"role": "user", "content": [*media, {"type": "text", "text": "a b" * count}]}]
        for count in words
    ]
    inputs = vlm.processor.apply_chat_template(
        chats, add_generation_prompt=True, tokenize=True, return_dict=True,
        patch_dtype=None if public else vlm.model.dtype,
    )  # fmt: skip
    return vlm.model.generate(**inputs, visual_cache=vlm.visual_cache, **options)


def resident() -> int:
    found = process_bytes()
    return found["anonymous"] + found["mapped"]


if __name__ == "__main__":
    main()
