"""Write the checkpoint halfway between two of one training run,
which may answer better than either.

python -m train_demo.blend FOLDER OTHER OUT
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from tokenizers import Tokenizer

from qwen25vl import Qwen2_5_VLForConditionalGeneration
from train_demo.checkpoint import write_checkpoint


def blend(folder: Path, other: Path, out: Path) -> None:
    models = [
        Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        for path in (folder, other)
    ]
    weights, others = (model.state_dict() for model in models)
    models[0].load_state_dict(
        {name: (weight + others[name]) / 2 for name, weight in weights.items()}
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    write_checkpoint(models[0].to(torch.bfloat16), tokenizer, out)


def main() -> None:
    blend(*map(Path, sys.argv[1:]))


if __name__ == "__main__":
    main()
