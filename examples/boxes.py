"""Boxes in pixels of the picture as it lies on disk.   python examples/boxes.py MODEL PICTURE OUT.png"""

import sys

import qwen25vl

model, picture, out = sys.argv[1:4]
vlm = qwen25vl.load(model)
answer = vlm.ask("Detect every object. Answer in JSON.", images=[picture], max_new_tokens=300)
for box in answer.boxes:
    print(box.label, box.x1, box.y1, box.x2, box.y2, "(clipped)" if box.clipped else "")
answer.draw().save(out)
