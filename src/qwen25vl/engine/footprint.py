"""How much memory a request takes beside the weights of the model: its stages, and the widest
moment of each.

A request passes four stages: pictures are encoded, clips are encoded, the prompts are read, the
answers are written. What a stage needs only for itself is given back before the next one, so the
peak is that of the widest stage. The refusal of what cannot fit and `qwen25vl info` both state
`Footprint.peak`.

Counted are the tensors that exist at the same time in the package's own layers, in bytes.

    N patches or tokens · D hidden_size · F intermediate_size · V vocab_size · S answers
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from qwen25vl.config import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qwen25vl.engine.prompt_scores import FLOAT_ROWS, HEAD_ROWS
from qwen25vl.engine.sampling import MAX_ROWS
from qwen25vl.engine.scratch import Execution, text_scratch, vision_scratch
from qwen25vl.inputs import Grid
from qwen25vl.model.cache import cache_bytes
from qwen25vl.model.layers import wide_rows
from qwen25vl.model.windows import MAX_PATCHES_PER_PASS, split_grids

MAX_TOKENS_PER_STEP = 2048
MAX_PATCHES_TOGETHER = 8192  # of media that are encoded together; a larger one is encoded alone
OTHER_BYTES = 5 * 2**20  # of any request: token ids, text, Python's objects, gaps in the heap
PAGE_BYTES = 4096
FLOAT_BYTES = 4


@dataclass(frozen=True)
class Request:
    """What is asked for, as far as memory depends on it.

    images, videos: grids (t, h, w) in patches. prompts: tokens of each prompt. answers: to each
    prompt; reserved: tokens that each answer may have, one number for each prompt; drafted: tokens
    drafted in a pass over all answers. num_returned: rows of the vocabulary (logits, scores) that
    are returned of each token. beams: of a search, each of which is an answer too. patch_bytes: of
    one number of the patches; keeps_patches: whether the caller holds them until the end.
    score_bytes: of what is kept of the prompts' log-probabilities, 0 where nobody asks for these.
    """

    prompts: tuple[int, ...]
    reserved: tuple[int, ...]
    images: tuple[Grid, ...] = ()
    videos: tuple[Grid, ...] = ()
    answers: int = 1
    drafted: int = 0
    is_greedy: bool = True
    num_returned: int = 0
    beams: int = 1
    patch_bytes: int = 2
    keeps_patches: bool = False
    has_visual_cache: bool = False
    score_bytes: int = 0


@dataclass(frozen=True)
class Footprint:
    """Bytes at the widest moment of each stage; patches: those that exist before the first one;
    scratch: what the kernels keep for the next call, through all stages."""

    images: int
    videos: int
    prompt: int
    answer: int
    patches: int
    scratch: int

    @property
    def peak(self) -> int:
        widest = max(self.images, self.videos, self.prompt, self.answer)
        return widest + self.scratch + OTHER_BYTES


def measure(config: Qwen2_5_VLConfig, request: Request, how: Execution) -> Footprint:
    """The memory of a request, weights apart."""
    vision, text = config.vision_config, config.text_config
    row = vision.patch_dim * request.patch_bytes
    image_patches, video_patches = (
        row * count_patches(request.images),
        row * count_patches(request.videos),
    )
    kept = image_patches + video_patches if request.keeps_patches else 0
    token = vision.out_hidden_size * how.item // vision.spatial_merge_size**2
    image_tokens, video_tokens = (
        token * count_patches(grids) for grids in (request.images, request.videos)
    )
    remembered = image_tokens + video_tokens if request.has_visual_cache else 0
    return Footprint(
        images=encoding_bytes(vision, request.images, request, how)
        + (0 if kept else video_patches),
        videos=encoding_bytes(vision, request.videos, request, how) + image_tokens,
        prompt=kept + remembered + prompt_bytes(text, request, image_tokens + video_tokens, how),
        answer=kept + remembered + answer_bytes(text, request, how),
        patches=image_patches + video_patches,
        scratch=scratch_bytes(config, request, how),
    )


def scratch_bytes(config: Qwen2_5_VLConfig, request: Request, how: Execution) -> int:
    """What the kernels keep after the widest pass of the encoder and the widest step."""
    limit = max_patches_together(how.has_kernels)
    passes = [
        patches
        for grids in (request.images, request.videos)
        for patches, _ in plan_passes(grids, limit)
    ]
    num_read = min(sum(request.prompts), MAX_TOKENS_PER_STEP)
    num_written = request.answers * len(request.prompts) + request.drafted
    encoder = vision_scratch(config.vision_config, max(passes, default=0), how)
    return max(encoder, text_scratch(config.text_config, max(num_read, num_written), how))


def count_patches(grids: Sequence[Grid]) -> int:
    return sum(t * h * w for t, h, w in grids)


def encoding_bytes(
    config: Qwen2_5_VLVisionConfig, grids: Sequence[Grid], request: Request, how: Execution
) -> int:
    """Patches not yet read, visual tokens so far, and the widest moment of each pass of the
    encoder."""
    if not grids:
        return 0
    row, unit = config.patch_dim * request.patch_bytes, config.spatial_merge_size**2
    token = config.out_hidden_size * how.item
    widest, num_tokens, left = 0, 0, row * count_patches(grids)
    for num_patches, read in plan_passes(grids, max_patches_together(how.has_kernels)):
        cast = config.patch_dim * how.item if how.item != request.patch_bytes else 0
        embedding = left + num_patches * (cast + config.hidden_size * how.item)
        left -= 0 if request.keeps_patches else row * read
        widest = max(
            widest, embedding, left + pass_bytes(config, num_patches, how) + token * num_tokens
        )
        num_tokens += num_patches // unit
    copies = (
        1 + (num_patches < count_patches(grids)) + 2 * (request.has_visual_cache and len(grids) > 1)
    )
    return max(widest, left + copies * token * num_tokens)


def plan_passes(grids: Sequence[Grid], max_patches: int) -> Iterator[tuple[int, int]]:
    """For each pass of the encoder: its patches, and those of the pictures and clips that it is the
    last to read."""
    for group in group_media(grids, max_patches):
        ends = {}
        total = 0
        for t, h, w in group:
            total += t * h * w
            ends[total] = t * h * w
        stop = 0
        for part in split_grids(group, MAX_PATCHES_PER_PASS):
            start, stop = stop, stop + count_patches(part)
            yield stop - start, sum(size for end, size in ends.items() if start < end <= stop)


def group_media(grids: Sequence[Grid], max_patches: int) -> Iterator[list[Grid]]:
    """Media that are encoded together: as many as have at most `max_patches`, at least one."""
    group: list[Grid] = []
    for grid in grids:
        if group and count_patches([*group, grid]) > max_patches:
            yield group
            group = []
        group.append(grid)
    if group:
        yield group


def max_patches_together(is_exact: bool) -> int:
    """Where no kernels serve a CPU, a medium's last bits would depend on its company: each is then
    encoded alone."""
    return MAX_PATCHES_TOGETHER if is_exact else 0


def pass_bytes(config: Qwen2_5_VLVisionConfig, num_patches: int, how: Execution) -> int:
    """A block of the encoder over N patches, and the angles and order of the patches.

    Attention holds x, its norm, q·k·v, q and k rotated and its result: 8·D; in 16 bits in torch,
    which rotates by halves in float32, 10·D. The feed-forward holds x before and after attention,
    its norm and its result: 4·D.
    """
    width, wide = config.hidden_size, config.intermediate_size
    rotates_wider = not how.has_kernels and how.item < FLOAT_BYTES
    attention, forward = (10 if rotates_wider else 8) * width, 4 * width
    angles = 4 * config.head_dim + 3 * 8
    at_once = max(
        num_patches * attention, num_patches * forward + forward_rows(num_patches, wide, how)
    )
    return how.item * at_once + angles * num_patches


def forward_rows(rows: int, wide: int, how: Execution) -> int:
    """Numbers of gate, up and their product (in torch silu of the gate too) for the rows that go at
    a time."""
    return min(rows, wide_rows(wide, how.item)) * wide * (3 if how.has_kernels else 4)


def prompt_bytes(
    config: Qwen2_5_VLTextConfig, request: Request, visual: int, how: Execution
) -> int:
    """The visual tokens, which exist beside the embeddings that they are copied into, the widest
    step, and keys and values."""
    num_tokens = sum(request.prompts)
    step = step_bytes(config, min(num_tokens, MAX_TOKENS_PER_STEP), how)
    if request.score_bytes:
        step = request.score_bytes + max(step, scoring_bytes(config, num_tokens, how))
    if not how.has_kernels:
        step += max(map(mask_bytes, request.prompts))
    caches = cache_bytes(config, num_tokens, how.item)
    num_runs = 2 * config.num_hidden_layers * config.num_key_value_heads  # each ends within a page
    for reserved in request.reserved:
        caches += min(cache_bytes(config, reserved, how.item), num_runs * PAGE_BYTES)
    return visual + step + caches


def step_bytes(config: Qwen2_5_VLTextConfig, rows: int, how: Execution) -> int:
    """The embedded rows of a step, and the widest moment of a layer.

    Attention holds x twice, its norm, q, k and v before and after rotation, its result before and
    after the last product: 6·D + 3·kv. The feed-forward holds 4·D and the rows that go at a time.
    """
    width, wide = config.hidden_size, config.intermediate_size
    kv_width = config.num_key_value_heads * config.head_dim
    attention = rows * (6 * width + 3 * kv_width)
    forward = rows * 4 * width + forward_rows(rows, wide, how)
    return how.item * (rows * width + max(attention, forward))


def scoring_bytes(config: Qwen2_5_VLTextConfig, num_tokens: int, how: Execution) -> int:
    """What rates the tokens of a prompt: the embedded and the hidden rows of a step, their logits
    some at a time, and of fewer float32 logits, log-probabilities and a comparison."""
    rows = min(num_tokens, MAX_TOKENS_PER_STEP)
    logits = min(rows, HEAD_ROWS) * how.item + min(rows, FLOAT_ROWS) * (2 * 4 + 1)
    return 2 * rows * config.hidden_size * how.item + logits * config.vocab_size


def mask_bytes(length: int) -> int:
    """torch's attention of a chunk behind others takes a mask [rows, keys], as bools and as
    float32."""
    at_once = MAX_TOKENS_PER_STEP
    stops = range(2 * at_once, length + at_once, at_once)  # of the chunks after the first
    return 5 * max(
        (min(at_once, length - stop + at_once) * min(stop, length) for stop in stops), default=0
    )


def answer_bytes(config: Qwen2_5_VLTextConfig, request: Request, how: Execution) -> int:
    """Keys and values of every answer, its prompt's included, and the logits of a step."""
    sizes = zip(request.prompts, request.reserved, strict=True)
    num_stored = request.answers * sum(prompt + reserved for prompt, reserved in sizes)
    num_answers, vocabulary = request.answers * len(request.prompts), config.vocab_size
    num_rows = num_answers + request.drafted
    copies = 2 if request.is_greedy else 8
    if request.beams > 1:  # log-probabilities, scores, those as kept, their sums
        copies, num_copied = 5, request.beams
    else:
        num_copied = min(num_answers, MAX_ROWS)
    returned = num_answers * max(request.reserved) * request.num_returned
    return (
        cache_bytes(config, num_stored, how.item)
        + logits_bytes(config, num_rows, num_answers, how)
        + 4 * vocabulary * (copies * num_copied + returned)
    )


def logits_bytes(
    config: Qwen2_5_VLTextConfig, num_rows: int, num_answers: int, how: Execution
) -> int:
    """The logits of a step, as computed and gathered, this one's and the last one's."""
    logits = num_rows * how.item + num_answers * (how.item % 4 + 2 * 4)
    return logits * config.vocab_size
