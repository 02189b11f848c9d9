"""Every operation of the model against torch's own, at the shapes of the 3B and 7B checkpoints, in
interleaved runs.

    python benchmarks/operations.py [--only linear] [--size 3b] [--threads 2] [--json FILE]

A row of the table is one operation at one shape: the median time of the kernel that serves here, of
the best that torch offers for the same numbers, and how many times faster the kernel is. The last
column says whether torch keeps the bits: whether a row (or a segment, or a picture) computed alone
equals the same row among others. Where it does not, torch cannot serve whatever its speed, since an
answer must not depend on its company (docs/decisions.md).
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F  # noqa: N812

from qwen25vl.kernels import library, ops, pictures, reference

Work = Callable[[], torch.Tensor]
BF16 = torch.bfloat16
MEAN, DEVIATION = torch.tensor([123.0, 117.0, 104.0]), torch.tensor([68.5, 66.6, 70.3])


@dataclass(frozen=True)
class Model:
    """The sizes of a released checkpoint that its operations depend on."""

    width: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int


MODELS = {"3b": Model(2048, 11008, 16, 2, 151936), "7b": Model(3584, 18944, 28, 4, 152064)}
VISION_WIDTH, VISION_INTERMEDIATE, VISION_HEADS = 1280, 3420, 16
TEXT_ROWS, NUM_PATCHES = (1, 8, 64, 512, 1400), 5476


@dataclass(frozen=True)
class Case:
    """One operation at one shape. `rivals` are torch's ways; `keeps_bits` compares torch alone and
    in company."""

    name: str
    shape: str
    ours: Work
    rivals: tuple[Work, ...]
    keeps_bits: Callable[[], bool]


@dataclass(frozen=True)
class Result:
    name: str
    shape: str
    ours: float
    torch: float
    keeps_bits: bool

    @property
    def ratio(self) -> float:
        return self.torch / self.ours


def linears(model: Model) -> Iterator[tuple[str, int, int, tuple[int, ...]]]:
    """(what, inputs, outputs, rows) of every linear layer."""
    kv_width, joined = model.kv_heads * 128, 4 * VISION_WIDTH
    for inputs, outputs in (
        (model.width, model.width),
        (model.width, kv_width),
        (model.width, model.intermediate),
        (model.intermediate, model.width),
    ):
        yield "text", inputs, outputs, TEXT_ROWS
    yield "head", model.width, model.vocabulary, (1, 8)
    for inputs, outputs in (
        (1176, VISION_WIDTH),
        (VISION_WIDTH, 3 * VISION_WIDTH),
        (VISION_WIDTH, VISION_WIDTH),
        (VISION_WIDTH, VISION_INTERMEDIATE),
        (VISION_INTERMEDIATE, VISION_WIDTH),
    ):
        yield "vision", inputs, outputs, (NUM_PATCHES,)
    yield "merger", joined, joined, (NUM_PATCHES // 4,)
    yield "merger", joined, model.width, (NUM_PATCHES // 4,)


def linear_cases(model: Model) -> Iterator[Case]:
    for part, inputs, outputs, all_rows in linears(model):
        weight, bias = torch.randn(outputs, inputs).to(BF16), torch.randn(outputs).to(BF16)
        for rows in all_rows:
            yield from layer_cases(part, torch.randn(rows, inputs).to(BF16), weight, bias)


def layer_cases(
    part: str, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor
) -> Iterator[Case]:
    """One layer in each precision. torch's rival is its best, often bfloat16 for int8 and int4
    too."""
    outputs, inputs = weight.shape
    codes, scale = (
        torch.randint(0, 256, (outputs, inputs), dtype=torch.uint8),
        torch.rand(outputs) * 0.01,
    )
    num_groups = -(-inputs // 128)
    packed = torch.randint(0, 256, (outputs, 64 * num_groups), dtype=torch.uint8)
    scales = torch.rand(outputs, num_groups).half()
    shape = f"{part} {len(x)}×{inputs}→{outputs}"
    keeps = rows_keep_bits(x, lambda rows: F.linear(rows, weight, bias))

    def rival() -> torch.Tensor:
        return F.linear(x, weight, bias)

    yield Case("linear bf16", shape, lambda: ops.linear(x, weight, bias), (rival,), keeps)
    if part != "merger" and (part, inputs) != ("vision", 1176):
        rivals = (rival, lambda: reference.linear_int8(x, codes, scale, bias))
        yield Case(
            "linear int8", shape, lambda: ops.linear_int8(x, codes, scale, bias), rivals, keeps
        )
    if part == "text":
        yield Case(
            "linear int4", shape, lambda: ops.linear_int4(x, packed, scales, bias), (rival,), keeps
        )


def rows_keep_bits(
    x: torch.Tensor, operation: Callable[[torch.Tensor], torch.Tensor]
) -> Callable[[], bool]:
    def compare() -> bool:
        whole = operation(x)
        parts = [slice(i, i + n) for n in (1, 3, 7) for i in (0, len(x) // 2)]
        return all(torch.equal(whole[part], operation(x[part])) for part in parts)

    return compare


def attention_cases(model: Model) -> Iterator[Case]:
    for name, lengths in (
        ("frame", [NUM_PATCHES]),
        ("frame", [2304]),
        ("frame", [1024]),
        ("windows", [64] * 85),
        ("windows", [64] * 16),
        ("windows", [48] * 9),
        ("windows", [36]),
    ):
        yield segments(name, lengths, VISION_HEADS, 80)
    for rows, past in ((1400, 0), (256, 0), (1, 1400), (1, 8000), (4, 1400), (512, 1400)):
        yield causal(rows, past, model)
    yield batch_of_decodes(8, 1400, model)


def segments(name: str, lengths: list[int], heads: int, size: int) -> Case:
    count, length = len(lengths), lengths[0]
    q, k, v = torch.randn(sum(lengths), 3, heads, size).to(BF16).unbind(1)

    def by_torch(first: int = 0, last: int = count) -> torch.Tensor:
        part = slice(first * length, last * length)
        qi, ki, vi = (
            x[part].unflatten(0, (last - first, length)).transpose(1, 2) for x in (q, k, v)
        )
        return F.scaled_dot_product_attention(qi, ki, vi).transpose(1, 2).flatten(0, 1)

    def ours() -> torch.Tensor:
        keys, values = (list(x.transpose(0, 1).split(lengths, dim=1)) for x in (k, v))
        mixed = ops.attend(q, lengths, keys, values, causal=False)
        return by_torch() if mixed is None else mixed

    def keeps() -> bool:
        alone = torch.cat([by_torch(i, i + 1) for i in range(count)])
        return torch.equal(by_torch(), alone)

    return Case(f"attention, {name}", f"{count}×{length}, {heads}×{size}", ours, (by_torch,), keeps)


def causal(rows: int, past: int, model: Model) -> Case:
    q = torch.randn(rows, model.heads, 128).to(BF16)
    cache = torch.randn(2, model.kv_heads, past + rows + 100, 128).to(BF16)
    keys, values = cache[0, :, : past + rows], cache[1, :, : past + rows]

    def by_torch(some: slice = slice(0, rows)) -> torch.Tensor:
        queries = q[some]
        seen = past + (some.stop or rows)
        if len(queries) == 1:
            folded = queries.view(1, model.kv_heads, -1, 128)
            return F.scaled_dot_product_attention(
                folded, keys[None, :, :seen], values[None, :, :seen]
            )
        mask = None
        if seen > len(queries):
            mask = torch.ones(len(queries), seen, dtype=torch.bool).tril(seen - len(queries))
        mixed = F.scaled_dot_product_attention(
            queries.transpose(0, 1)[None], keys[None, :, :seen], values[None, :, :seen],
            attn_mask=mask, is_causal=mask is None, enable_gqa=True,
        )  # fmt: skip
        return mixed[0].transpose(0, 1)

    def ours() -> torch.Tensor:
        mixed = ops.attend(q, [rows], [keys], [values], causal=True)
        return by_torch() if mixed is None else mixed

    def keeps() -> bool:
        whole = by_torch().reshape(rows, model.heads, 128)
        row = rows // 2
        return torch.equal(whole[row], by_torch(slice(row, row + 1)).reshape(model.heads, 128))

    shape = f"{rows} after {past}, {model.heads}/{model.kv_heads}×128"
    return Case("attention, causal", shape, ours, (by_torch,), keeps)


def batch_of_decodes(count: int, past: int, model: Model) -> Case:
    q = torch.randn(count, model.heads, 128).to(BF16)
    caches = torch.randn(count, 2, model.kv_heads, past + 1, 128).to(BF16)
    keys, values = [cache[0] for cache in caches], [cache[1] for cache in caches]

    def by_torch() -> torch.Tensor:
        folded = q.view(count, 1, model.kv_heads, -1, 128)
        one_by_one = zip(folded, keys, values, strict=True)
        rows = [F.scaled_dot_product_attention(f, k[None], v[None]) for f, k, v in one_by_one]
        return torch.cat(rows).view_as(q)

    def ours() -> torch.Tensor:
        mixed = ops.attend(q, [1] * count, keys, values, causal=True)
        return by_torch() if mixed is None else mixed

    shape = f"{count} answers after {past}, {model.heads}/{model.kv_heads}×128"
    return Case("attention, causal", shape, ours, (by_torch,), lambda: True)


def elementwise_cases(model: Model) -> Iterator[Case]:
    for rows, width in [(rows, model.width) for rows in TEXT_ROWS] + [(NUM_PATCHES, VISION_WIDTH)]:
        x, weight = torch.randn(rows, width).to(BF16), torch.randn(width).to(BF16)
        work = lambda x=x, weight=weight: ops.rms_norm(x, weight, 1e-6)  # noqa: E731
        rivals = (
            lambda x=x, weight=weight: reference.rms_norm(x, weight, 1e-6),
            lambda x=x, weight=weight: F.rms_norm(x, (x.shape[1],), weight, 1e-6),
        )
        yield Case("rms_norm", f"{rows}×{width}", work, rivals, lambda: True)
    for rows, width in [(rows, model.intermediate) for rows in TEXT_ROWS] + [
        (NUM_PATCHES, VISION_INTERMEDIATE)
    ]:
        gate, up = torch.randn(2, rows, width).to(BF16)
        work = lambda gate=gate, up=up: ops.silu_mul(gate, up)  # noqa: E731
        rival = lambda gate=gate, up=up: reference.silu_mul(gate, up)  # noqa: E731
        yield Case("silu_mul", f"{rows}×{width}", work, (rival,), lambda: True)
    shapes = [(rows, model.heads, 128, BF16) for rows in TEXT_ROWS] + [
        (NUM_PATCHES, VISION_HEADS, 80, torch.float32)
    ]
    for rows, heads, size, dtype in shapes:
        x, angles = torch.randn(rows, heads, size).to(BF16), torch.randn(rows, 1, size // 2)
        rotation = angles.cos().to(dtype), angles.sin().to(dtype)
        work = lambda x=x, rotation=rotation: ops.rotate(x, rotation)  # noqa: E731
        rival = lambda x=x, rotation=rotation: reference.rotate(x, *rotation)  # noqa: E731
        yield Case("rotate", f"{rows}×{heads}×{size}", work, (rival,), lambda: True)


def picture_cases() -> Iterator[Case]:
    """Pictures as Pillow stores them, and as three planes of colour."""
    for height, width in ((336, 448), (1024, 1024), (3000, 4000)):
        planes = torch.randint(0, 256, (1, 3, height, width), dtype=torch.uint8)
        pixels = planes.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        for layout, frames in (("pixels", pixels), ("planes", planes)):
            yield picture_case(layout, frames)


def picture_case(layout: str, frames: torch.Tensor) -> Case:
    height, width = frames.shape[2:]
    side = (min(height, 1008) // 28 * 28, min(width, 1008) // 28 * 28)

    def ours() -> torch.Tensor:
        return pictures.cut(frames, side, MEAN, DEVIATION, patch=14, merge=2, temporal=2)

    def rival() -> torch.Tensor:
        is_resized = frames.shape[-2:] != side
        small = (
            F.interpolate(frames, size=side, mode="bicubic", antialias=True)
            if is_resized
            else frames
        )
        return pictures.cut_in_torch(small, MEAN, DEVIATION, 14, 2, 2)

    shape = f"{height}×{width}→{side[0]}×{side[1]}, {layout}"
    return Case("picture to patches", shape, ours, (rival,), lambda: True)


def cases(model: Model) -> Iterator[Case]:
    yield from picture_cases()
    yield from elementwise_cases(model)
    yield from attention_cases(model)
    yield from linear_cases(model)


def measure(case: Case, seconds: float) -> Result:
    """Medians of interleaved runs that take about `seconds` in all."""
    works = (case.ours, *case.rivals)
    times: list[list[float]] = [[] for _ in works]
    for work in works:
        work()
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[0]) < 3:
        for work, taken in zip(works, times, strict=True):
            start = time.perf_counter()
            work()
            taken.append(time.perf_counter() - start)
    ours, *rivals = (median(taken) for taken in times)
    return Result(case.name, case.shape, ours, min(rivals), case.keeps_bits())


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="operations whose name contains this")
    parser.add_argument("--size", choices=[*MODELS, "both"], default="both")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="for each row of the table")
    parser.add_argument("--json", type=Path, help="write the rows here as well")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"{library.describe()}; torch {torch.__version__}, {arguments.threads} threads")
    print(
        f"{'operation':20} {'shape':40} {'ours':>9} {'torch':>9} {'ratio':>6}  torch keeps the bits"
    )
    results = []
    for size in MODELS if arguments.size == "both" else [arguments.size]:
        print(size)
        for case in cases(MODELS[size]):
            if arguments.only in case.name:
                result = measure(case, arguments.seconds)
                results.append(asdict(result) | {"size": size, "ratio": result.ratio})
                times = (
                    f"{1e3 * result.ours:7.3f}ms {1e3 * result.torch:7.3f}ms {result.ratio:6.2f}"
                )
                print(
                    f"{case.name:20} {case.shape:40} {times}  "
                    f"{'yes' if result.keeps_bits else 'no'}",
                    flush=True,
                )
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
