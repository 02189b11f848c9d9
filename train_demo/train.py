"""Train the demo model on the CPU; may be killed and started again at any time.

    python -m train_demo.train --folder train_demo/runs/first --steps 3000
    torchrun --nproc-per-node 2 -m train_demo.train …          # the same on two cores, a batch on each

The model computes in bfloat16, as it will be used. The folder holds the state, the curve (log.jsonl) and the best
checkpoint so far.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from tqdm import tqdm

from qwen25vl import Qwen2_5_VLForConditionalGeneration
from train_demo.checkpoint import initialise, make_config, write_checkpoint
from train_demo.data import IGNORED, Batch, Scenes, make_questions
from train_demo.optimiser import Optimiser, schedule
from train_demo.questions import ABILITIES
from train_demo.vocabulary import train_tokenizer

HELD_OUT_SEED = "held out while training"
NUM_HELD_OUT = 100


class Run:
    """One training run in its folder: the model, its optimiser and how far they are."""

    def __init__(self, folder: Path, learning_rate: float) -> None:
        torch.manual_seed(0)
        self.folder = folder
        known = folder / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(known)) if known.exists() else train_tokenizer()
        # eager: its backward pass is faster than the fused kernel's on short sequences
        self.model = Qwen2_5_VLForConditionalGeneration(make_config(self.tokenizer), attn_implementation="eager")
        initialise(self.model)
        self.optimiser = Optimiser(self.model, learning_rate)
        self.model.to(torch.bfloat16)
        self.step, self.best = 0, -1.0
        if (folder / "state.pt").exists():
            state = torch.load(folder / "state.pt", weights_only=True)
            self.step, self.best = state["step"], state["best"]
            self.optimiser.restore(state["optimiser"])

    def learn(self, batch: Batch, scale: float) -> float:
        """One step; returns the loss."""
        loss: torch.Tensor = self.model(**batch, use_cache=False).loss
        loss.backward()
        self.optimiser.step(scale)
        self.step += 1
        return loss.item()

    def save(self, scores: dict[str, float]) -> None:
        """Keep the state, and the checkpoint if it answers better than any before."""
        score = sum(scores[ability] for ability in ("description", "colour", "count"))
        if score >= self.best:
            self.best = score
            write_checkpoint(self.model, self.tokenizer, self.folder / "best")
        self.tokenizer.save(str(self.folder / "tokenizer.json"))
        state = {"step": self.step, "best": self.best, "optimiser": self.optimiser.state()}
        torch.save(state, self.folder / "state.new")
        (self.folder / "state.new").replace(self.folder / "state.pt")


@torch.no_grad()
def share_right(model: Qwen2_5_VLForConditionalGeneration, batches: list[Batch]) -> float:
    """Share of answers whose every token is the most likely one: exactly those that greedy decoding gets right."""
    right = []
    for batch in batches:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        labels = batch["labels"][:, 1:]
        guesses = model(**inputs, use_cache=False).logits[:, :-1].argmax(-1)
        right.append(((guesses == labels) | (labels == IGNORED)).all(1).float())
    return round(torch.cat(right).mean().item(), 3)


def train(run: Run, scenes: Scenes, num_steps: int, evaluate_every: int, rank: int, num_ranks: int) -> None:
    held_out = {ability: make_questions(run.tokenizer, ability, NUM_HELD_OUT, HELD_OUT_SEED) for ability in ABILITIES}
    began, losses = time.monotonic(), []
    for step in tqdm(range(run.step, num_steps), initial=run.step, total=num_steps, disable=rank > 0):
        losses.append(run.learn(scenes[step * num_ranks + rank], schedule(step, num_steps)))
        if rank > 0 or (run.step % evaluate_every and run.step < num_steps):
            continue
        scores = {ability: share_right(run.model, batches) for ability, batches in held_out.items()}
        loss = round(sum(losses) / len(losses), 4)
        losses.clear()
        with (run.folder / "log.jsonl").open("a") as log:
            print(
                json.dumps({"step": run.step, "seconds": round(time.monotonic() - began), "loss": loss, **scores}),
                file=log,
            )
        run.save(scores)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=20, help="scenes of a step in each process")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--evaluate-every", type=int, default=100)
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks > 1:
        dist.init_process_group("gloo")
    torch.set_num_threads(1)  # one process on each core is faster than threads
    run = Run(options.folder, options.learning_rate)
    scenes = Scenes(run.tokenizer, options.batch_size, options.steps * num_ranks)
    train(run, scenes, options.steps, options.evaluate_every, rank, num_ranks)


if __name__ == "__main__":
    main()
