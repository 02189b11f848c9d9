"""Boxes in pixels of the picture as it lies on disk.   python examples/boxes.py OUT.png [MODEL]
[PICTURE]"""

from argparse import ArgumentParser
from pathlib import Path

import qwen25vl

parser = ArgumentParser(description="Detect every animal, and draw the boxes.")
parser.add_argument("out", help="the picture to write")
parser.add_argument(
    "model", nargs="?", help="a folder or a hub name; by default the built-in model"
)
parser.add_argument("picture", nargs="?", default=Path(__file__).parent / "boxes.png")
options = parser.parse_args()

vlm = qwen25vl.load(options.model)
answer = vlm.ask("Detect every animal in JSON.", images=[options.picture], max_new_tokens=300)
for box in answer.boxes:
    print(box.label, box.x1, box.y1, box.x2, box.y2, "(clipped)" if box.clipped else "")
answer.draw().save(options.out)
