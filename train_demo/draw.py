"""Draw one scene and say what is on it.

python -m train_demo.draw SEED WIDTH HEIGHT OUT.png
"""

from __future__ import annotations

import sys
from random import Random

from train_demo.questions import describe
from train_demo.scenes import draw, make_scene


def main() -> None:
    seed, width, height, path = sys.argv[1:]
    rng = Random(seed)
    scene = make_scene(rng, int(width), int(height))
    draw(scene, rng).save(path)
    print(describe(scene))


if __name__ == "__main__":
    main()
