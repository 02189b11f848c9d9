"""The built-in checkpoint: a small Qwen2.5-VL for drawn scenes, words and clips; train_demo/ made it."""

from pathlib import Path

FOLDER = Path(__file__).parent
