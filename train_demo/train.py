"""Train the demo model on the CPU; may be killed and started again at any time.

    python -m train_demo.train --folder train_demo/runs/first --steps 20000 torchrun
    --nproc-per-node 2 -m train_demo.train …          # the same on two cores, a batch on each
    python -m train_demo.train … --start-from src/qwen25vl/demo --first-step 8500      # go on from
    a checkpoint alone

The model computes in bfloat16, as it will be used. The folder holds the state, the curve
(log.jsonl) and the best checkpoint so far.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import torch
import torch.distributed as dist
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from qwen25vl import Qwen2_5_VLForConditionalGeneration
from qwen25vl.kernels import reference
from qwen25vl.kernels.allocator import keep_large_buffers
from train_demo.checkpoint import initialise, make_config, write_checkpoint
from train_demo.data import HELD_OUT, IGNORED, Batch, Batches, make_questions
from train_demo.looking import Looking
from train_demo.optimiser import Optimiser, schedule
from train_demo.things import FOLDER, Atlas
from train_demo.vocabulary import train_tokenizer

HELD_OUT_SEED = "held out while training"
NUM_HELD_OUT = 60
SAVE_EVERY = 50  # steps
# what a batch holds beside the inputs
LESSONS = ("labels", "weights", "seen", "names", "told", "read", "drill_pixels", "drill_grids")
CATCH_UP_STEPS, CATCH_UP_RATE = 80, 2.0  # of the lessons' layers, beside weights that know already
LOOKING_SHARE = 0.08  # of the loss of looking beside that of the answers


class Run:
    """One training run in its folder: the model, its optimiser and how far they are.

    A run without a state of its own can start from a checkpoint's folder; `first` is the step its
    weights are of.
    """

    def __init__(
        self, folder: Path, learning_rate: float, start: Path | None = None, first: int = 0
    ) -> None:
        torch.manual_seed(0)
        self.folder = folder
        has_state = (folder / "state.pt").exists()
        known = (folder if has_state or not start else start) / "tokenizer.json"
        self.tokenizer = Tokenizer.from_file(str(known)) if known.exists() else train_tokenizer()
        # eager: its backward pass is faster than the fused kernel's on short sequences
        self.model = Qwen2_5_VLForConditionalGeneration(
            make_config(self.tokenizer), attn_implementation="eager"
        )
        initialise(self.model)
        if start:
            known_model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
                start, dtype=torch.float32
            )
            self.model.load_state_dict(known_model.state_dict())
        self.optimiser = Optimiser(self.model, learning_rate)
        self.looking = Looking(self.model, learning_rate)
        self.model.to(torch.bfloat16)
        self.step, self.first, self.best = first, first, -1.0
        self.has_to_catch_up = start is not None
        if has_state:
            state = torch.load(folder / "state.pt", weights_only=True)
            self.step, self.first, self.best = state["step"], state.get("first", 0), state["best"]
            self.has_to_catch_up = False
            self.optimiser.restore(state["optimiser"])
            if "looking" in state:
                self.looking.restore(state["looking"])

    def learn(self, batch: Batch, scale: float) -> tuple[float, float]:
        """One step; returns the losses of the answers and of looking."""
        logits, targets, weights = predict(self.model, batch)
        self.practise(batch)
        answers = (
            cross_entropy(logits.float(), targets, reduction="none") * weights
        ).sum() / weights.sum()
        looking = self.looking.loss(batch, self.is_visual(batch))
        (answers + LOOKING_SHARE * looking).backward()
        self.optimiser.step(scale)
        self.looking.step(scale)
        self.step += 1
        return answers.item(), looking.item()

    def practise(self, batch: Batch) -> None:
        """Let the encoder see the pictures that nothing is asked about."""
        if "drill_pixels" in batch:
            self.model.visual(batch["drill_pixels"], batch["drill_grids"])

    def catch_up(self, batches: Iterable[Batch]) -> None:
        """Let the lessons' layers, which no checkpoint keeps,
        learn beside a model that stays as it is."""
        self.model.requires_grad_(False)
        for batch in batches:
            predict(self.model, batch)
            self.practise(batch)
            (LOOKING_SHARE * self.looking.loss(batch, self.is_visual(batch))).backward()
            self.looking.step(CATCH_UP_RATE)
        self.model.requires_grad_(True)

    def is_visual(self, batch: Batch) -> torch.Tensor:
        """Which of the tokens, without padding, come from pictures and clips."""
        ids, config = batch["input_ids"][batch["attention_mask"].bool()], self.model.config
        return (ids == config.image_token_id) | (ids == config.video_token_id)

    def keep_best(self, scores: dict[str, float]) -> None:
        """Keep the checkpoint if it answers better than any before."""
        score = sum(scores.values())
        if score >= self.best:
            self.best = score
            with self.optimiser.averaged():
                write_checkpoint(self.model, self.tokenizer, self.folder / "best")

    def save(self) -> None:
        """Keep the state."""
        if not (self.folder / "tokenizer.json").exists():
            self.tokenizer.save(str(self.folder / "tokenizer.json"))
        state = {
            "step": self.step,
            "first": self.first,
            "best": self.best,
            "optimiser": self.optimiser.state(),
            "looking": self.looking.state(),
        }
        torch.save(state, self.folder / "state.new")
        (self.folder / "state.new").replace(self.folder / "state.pt")


def predict(
    model: Qwen2_5_VLForConditionalGeneration, batch: Batch
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [targets, vocabulary] of the places before labels, these labels and weights: most
    places have none."""
    inputs = {key: value for key, value in batch.items() if key not in LESSONS}
    hidden = model.model(**inputs, use_cache=False).last_hidden_state
    labels = batch["labels"][:, 1:]
    told = labels != IGNORED
    return model.compute_logits(hidden[:, :-1][told]), labels[told], batch["weights"][:, 1:][told]


@torch.no_grad()
def share_right(model: Qwen2_5_VLForConditionalGeneration, batches: list[Batch]) -> float:
    """Share of answers whose every token is the most likely one:
    exactly those that greedy decoding gets right."""
    right = []
    for batch in batches:
        logits, targets, _ = predict(model, batch)
        is_target = batch["labels"][:, 1:] != IGNORED
        wrong = torch.zeros(is_target.shape, dtype=torch.bool)
        wrong[is_target] = logits.argmax(-1) != targets
        right.append((~wrong).all(1).float())
    return round(torch.cat(right).mean().item(), 3)


def train(run: Run, batches: Batches, options: argparse.Namespace, rank: int) -> None:
    atlas = Atlas(options.things)
    held_out = {
        kind: make_questions(run.tokenizer, atlas, kind, NUM_HELD_OUT, HELD_OUT_SEED)
        for kind in HELD_OUT
    }
    began, losses = time.monotonic(), []
    if run.has_to_catch_up:
        first = range(run.step, run.step + CATCH_UP_STEPS)
        run.catch_up(
            batches[step * batches.num_ranks + rank]
            for step in tqdm(first, "Lessons", disable=rank > 0)
        )
    steps = tqdm(
        range(run.step, options.steps), initial=run.step, total=options.steps, disable=rank > 0
    )
    for step in steps:
        batch = batches[step * batches.num_ranks + rank]
        losses.append(
            run.learn(batch, schedule(step, run.first, options.decay_from, options.steps))
        )
        steps.set_postfix(loss=mean(losses, 0), looking=mean(losses, 1), refresh=False)
        is_last = run.step == options.steps
        if rank > 0 or (run.step % options.evaluate_every and not is_last):
            if rank == 0 and run.step % SAVE_EVERY == 0:
                run.save()
            continue
        with run.optimiser.averaged():
            scores = {
                kind: share_right(run.model, questions) for kind, questions in held_out.items()
            }
        told = {
            "step": run.step,
            "seconds": round(time.monotonic() - began),
            "loss": mean(losses, 0),
            "looking": mean(losses, 1),
        }
        losses.clear()
        with (run.folder / "log.jsonl").open("a") as log:
            print(json.dumps(told | scores), file=log)
        run.keep_best(scores)
        run.save()


def mean(losses: list[tuple[float, float]], part: int) -> float:
    return round(sum(loss[part] for loss in losses) / len(losses), 4)


def compile_twins() -> None:
    """Let torch fuse what the package leaves in small operations where gradients are kept: a tenth
    of the time."""
    for name in ("rms_norm", "rotate", "silu_mul"):
        setattr(reference, name, torch.compile(getattr(reference, name), dynamic=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument(
        "--things",
        type=Path,
        default=FOLDER,
        help="where train_demo.things wrote pictures and fonts",
    )
    parser.add_argument("--steps", type=int, default=20000)
    parser.add_argument(
        "--decay-from",
        type=int,
        help="the step from which the learning rate falls to nothing: 0.75 of all",
    )
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument(
        "--start-from", type=Path, help="a checkpoint's folder, for a run that has no state yet"
    )
    parser.add_argument(
        "--first-step", type=int, default=0, help="how many steps that checkpoint has had"
    )
    parser.add_argument("--evaluate-every", type=int, default=200)
    options = parser.parse_args()
    if options.decay_from is None:
        options.decay_from = round(0.75 * options.steps)
    if options.decay_from > options.steps:
        parser.error("--decay-from must not be behind the last of --steps")
    options.folder.mkdir(parents=True, exist_ok=True)
    rank, num_ranks = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if num_ranks > 1:
        dist.init_process_group("gloo")
    torch.set_num_threads(1)  # one process on each core is faster than threads
    keep_large_buffers()
    compile_twins()
    run = Run(options.folder, options.learning_rate, options.start_from, options.first_step)
    train(
        run,
        Batches(run.tokenizer, Atlas(options.things, for_training=True), num_ranks),
        options,
        rank,
    )


if __name__ == "__main__":
    main()
