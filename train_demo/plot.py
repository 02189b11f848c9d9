"""Draw the curve of a training run: the share of right answers of each ability, and the losses.

python -m train_demo.plot train_demo/log.jsonl train_demo/curve.svg
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from matplotlib import pyplot

# boxes and points are right here only to the last digit, which says little: see `evaluate`
PANELS = {
    "seeing": ("colour", "shape", "name", "presence", "absent"),
    "places": ("where", "beside", "extreme", "whether"),
    "several at once": ("description", "count", "comparison", "same colour"),
    "other kinds": ("pair", "clip", "lines", "table"),
    "loss": ("loss", "looking"),
}


def main() -> None:
    log, out = map(Path, sys.argv[1:])
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    figure, grid = pyplot.subplots(2, 3, figsize=(11, 6.4), layout="constrained")
    grid[1, 2].remove()
    for panel, (title, names) in zip(grid.flat, PANELS.items(), strict=False):
        for name in names:
            known = [row for row in rows if name in row]
            panel.plot([row["step"] for row in known], [row[name] for row in known], label=name)
        panel.set(
            title=title, xlabel="step", xlim=(0, None), ylim=(0, 1 if title != "loss" else None)
        )
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8)
    figure.savefig(out)


if __name__ == "__main__":
    main()
