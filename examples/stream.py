"""Text as it is written, and a chat that remembers.   python examples/stream.py [MODEL]"""

import sys
from pathlib import Path

import qwen25vl

PICTURE = Path(__file__).parent / "scene.png"

vlm = qwen25vl.load(sys.argv[1] if len(sys.argv) > 1 else None)
for chunk in vlm.stream("Describe the picture.", images=[PICTURE], max_new_tokens=100):
    print(chunk.text, end="", flush=True)
print()
