"""A clip: a file, or pictures of which `fps` make a second.   python examples/video.py [MODEL]
[CLIP]"""

import sys
from pathlib import Path

import qwen25vl

CLIP = Path(__file__).parent / "moves.gif"

vlm = qwen25vl.load(sys.argv[1] if len(sys.argv) > 1 else None)
clip = sys.argv[2] if len(sys.argv) > 2 else CLIP  # or a list of pictures
answer = vlm.ask("What happens in the video?", videos=[clip], fps=2.0, max_new_tokens=60)
print(answer.text)
print(
    f"{answer.media[0].num_frames} frames, {answer.media[0].seconds_per_grid} s between two grids"
)
