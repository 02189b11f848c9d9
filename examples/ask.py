"""The short way: load, ask, look at what it cost.   python examples/ask.py [MODEL]"""

import sys
from pathlib import Path

import qwen25vl

PICTURE = Path(__file__).parent / "scene.png"

vlm = qwen25vl.load(sys.argv[1] if len(sys.argv) > 1 else None)  # no name: the built-in model
answer = vlm.ask("Describe the picture.", images=[PICTURE])
print(answer.text)
print(answer.usage)
print(answer.media[0].original_size, "->", answer.media[0].model_size)
