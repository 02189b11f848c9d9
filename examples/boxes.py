"""Boxes in pixels of the picture as it lies on disk.   python examples/boxes.py OUT.png [MODEL] [PICTURE]"""

import sys
from pathlib import Path

import qwen25vl

out, model, picture = [*sys.argv[1:], None, None][:3]
vlm = qwen25vl.load(model)  # None: the built-in model
picture = picture or Path(__file__).parent / "boxes.png"
answer = vlm.ask("Detect every animal in JSON.", images=[picture], max_new_tokens=300)
for box in answer.boxes:
    print(box.label, box.x1, box.y1, box.x2, box.y2, "(clipped)" if box.clipped else "")
answer.draw().save(out)
