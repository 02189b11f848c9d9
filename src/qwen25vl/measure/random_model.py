"""Models of the released shapes with random weights, for measuring:
no hub, no file, and made in seconds."""

from __future__ import annotations

from dataclasses import replace
from math import ceil

import torch

from qwen25vl.config import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
from qwen25vl.ecosystem.torchao_config import read_scheme
from qwen25vl.inputs import Grid
from qwen25vl.kernels.allocator import map_large_buffers
from qwen25vl.loading.load import SkipInitialisation
from qwen25vl.loading.quantization import add_int8_head, covered_linears, make_packed_layer
from qwen25vl.measure import cost
from qwen25vl.measure.limits import measure_reading, seconds
from qwen25vl.memory import require_bytes
from qwen25vl.model.cache import KVCache

# hidden, layers, heads, key/value heads, intermediate, vocabulary, vision intermediate, tied
SIZES = {
    "3b": (2048, 36, 16, 2, 11008, 151936, 3420, True),
    "7b": (3584, 28, 28, 4, 18944, 152064, 3420, False),
    "32b": (5120, 64, 40, 8, 27648, 152064, 3456, False),
    "72b": (8192, 80, 64, 8, 29568, 152064, 3456, False),
}
STANDARD_DEVIATION, NOISE_LENGTH = 0.02, 2**20 + 1
PROBE_BYTES, PROBE_OPERATIONS, PROBE_TOKENS = 2**27, 1e11, 256
SMALL = 512


def released_config(size: str) -> Qwen2_5_VLConfig:
    """The shapes of a released checkpoint: "3b", "7b", "32b" or "72b"."""
    hidden, layers, heads, kv_heads, intermediate, vocabulary, vision_intermediate, tied = SIZES[
        size
    ]
    text = Qwen2_5_VLTextConfig(vocabulary, hidden, intermediate, layers, heads, kv_heads)
    vision = Qwen2_5_VLVisionConfig(intermediate_size=vision_intermediate, out_hidden_size=hidden)
    return Qwen2_5_VLConfig(text, vision, tie_word_embeddings=tied)


@torch.inference_mode(False)  # tensors whose changes torch counts, which the 8-bit head wants
def random_model(
    config: Qwen2_5_VLConfig, quantize: str | None = None, dtype: torch.dtype = torch.bfloat16
) -> Qwen2_5_VLForConditionalGeneration:
    """A model on the CPU with random weights. Raises OutOfMemoryError where it cannot fit."""
    scheme = read_scheme(quantize)
    map_large_buffers()
    with torch.device("meta"), SkipInitialisation():
        model = Qwen2_5_VLForConditionalGeneration(config).to(dtype)
    if scheme:
        for path, linear in covered_linears(model, scheme).items():
            model.set_submodule(path, make_packed_layer(linear, scheme.for_layer(path)))
    needed = sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
    require_bytes(needed, torch.device("cpu"), "a model with random weights")
    generator = torch.Generator("cpu").manual_seed(0)
    weights = (
        torch.randn(NOISE_LENGTH, generator=generator, dtype=torch.float32, device="cpu")
        .mul_(STANDARD_DEVIATION)
        .to(dtype)
    )
    codes = torch.randint(-(2**31), 2**31, (NOISE_LENGTH,), generator=generator, device="cpu").to(
        torch.int32
    )
    for module in model.modules():
        module.to_empty(device="cpu", recurse=False)
        for name, tensor in (
            *module.named_parameters(recurse=False),
            *module.named_buffers(recurse=False),
        ):
            if name == "weight_scale":
                tensor.fill_(STANDARD_DEVIATION / (4 if tensor.dtype == torch.float16 else 64))
            elif tensor.ndim > 1:
                repeat(codes if tensor.dtype == torch.int32 else weights, tensor.data)
            else:
                tensor.data.fill_(name == "weight")  # norms are 1, biases 0
    add_int8_head(model)
    return model.eval()


def repeat(noise: torch.Tensor, target: torch.Tensor) -> None:
    """Fill the whole of a contiguous tensor with copies of the noise."""
    whole = target.numel() // len(noise) * len(noise)
    target.view(-1)[:whole].view(-1, len(noise)).copy_(noise)
    target.view(-1)[whole:].copy_(noise[: target.numel() - whole])


@torch.inference_mode()
def measure_rates(
    config: Qwen2_5_VLConfig, precision: str, grid: Grid, num_tokens: int
) -> cost.Rates:
    """What this machine reaches on a few layers of such a model, with inputs no larger than needed;
    about a second.

    precision: a key of BYTES_PER_WEIGHT; grid: of a picture, in patches; num_tokens: of a prompt.
    """
    text, vision = config.text_config, config.vision_config
    dtype = torch.float32 if precision == "float32" else torch.bfloat16
    layer_bytes = cost.layer_weights(text) * cost.BYTES_PER_WEIGHT[precision]
    num_layers = min(text.num_hidden_layers, ceil(PROBE_BYTES / layer_bytes))
    depth = min(vision.depth, 8 if vision.hidden_size < SMALL else 2)
    few = replace(
        config,
        text_config=replace(text, num_hidden_layers=num_layers, vocab_size=64),
        vision_config=replace(vision, depth=depth, fullatt_block_indexes=(depth - 1,)),
    )
    model = random_model(few, precision if precision.startswith("int") else None, dtype)
    few_vision, few_text = few.vision_config, few.text_config
    _, h, w = (
        grid
        if cost.vision_operations(few_vision, [(1, *grid[1:])]) <= PROBE_OPERATIONS
        else (1, 32, 32)
    )
    pixels = torch.zeros(h * w, vision.patch_dim, dtype=dtype, device="cpu")
    encoding = seconds(lambda: model.visual(pixels, [(1, h, w)]), 2)

    def read(count: int) -> float:
        embeds = torch.ones(count, text.hidden_size, dtype=dtype, device="cpu")
        positions = torch.arange(count, device="cpu").expand(3, -1)
        run = model.model.language_model.run
        return seconds(
            lambda: run(embeds, positions, [count], [KVCache(few_text, dtype, capacity=count)]), 3
        )

    count = (
        num_tokens
        if cost.text_operations(few_text, num_tokens) <= PROBE_OPERATIONS
        else PROBE_TOKENS
    )
    return cost.Rates(
        cost.vision_operations(few_vision, [(1, h, w)]) / encoding,
        cost.text_operations(few_text, count) / read(count),
        num_layers * layer_bytes / read(1),
        measure_reading(2),
    )
