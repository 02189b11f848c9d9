"""The numbers of GGUF's block types: bytes [blocks, bytes of a block] to float32 [blocks, numbers].

d and m, the scale and offset of a block, are float16. The 256 numbers of a K-quant have 8 or 16
sub-blocks with small integer scales of their own; IQ4's levels come from a table. Formulas: ggml's
ggml-quants.c.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Decoder = Callable[[torch.Tensor], torch.Tensor]
IQ4_LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
PAIRS = (0, 2, 4, 6)  # by how many bits to shift for each of four numbers in a byte


def halves(blocks: torch.Tensor) -> torch.Tensor:
    """Bytes [n, 2 · k] to the float16 numbers that they spell, in float32 [n, k]."""
    return blocks.contiguous().view(torch.float16).float()


def half_bytes(codes: torch.Tensor) -> torch.Tensor:
    """[..., n] to [..., 2 n]: the low halves of all bytes, then the high ones"""
    return torch.cat([codes & 15, codes >> 4], -1)


def bits_of(codes: torch.Tensor, places: tuple[int, ...], mask: int = 1) -> torch.Tensor:
    """[n, ..., k] to [n, ..., places, k]: the bits at each place of each byte"""
    shifts = torch.tensor(places, dtype=torch.uint8, device="cpu")[:, None]
    bits: torch.Tensor = codes.unsqueeze(-2) >> shifts & mask
    return bits


def five_bits(packed: torch.Tensor) -> torch.Tensor:
    """[n, 4 + 16] bytes to [n, 32]: a word with the fifth bits of all numbers, then half bytes"""
    fifth = (packed[:, :4, None] >> torch.arange(8, dtype=torch.uint8, device="cpu") & 1).flatten(1)
    return half_bytes(packed[:, 4:]).add_(fifth, alpha=16)


def decode_q4_0(blocks: torch.Tensor) -> torch.Tensor:
    return halves(blocks[:, :2]) * (half_bytes(blocks[:, 2:]).float() - 8)


def decode_q4_1(blocks: torch.Tensor) -> torch.Tensor:
    numbers = halves(blocks[:, :4])
    return numbers[:, :1] * half_bytes(blocks[:, 4:]) + numbers[:, 1:]


def decode_q5_0(blocks: torch.Tensor) -> torch.Tensor:
    return halves(blocks[:, :2]) * (five_bits(blocks[:, 2:]).float() - 16)


def decode_q5_1(blocks: torch.Tensor) -> torch.Tensor:
    numbers = halves(blocks[:, :4])
    return numbers[:, :1] * five_bits(blocks[:, 4:]) + numbers[:, 1:]


def decode_q8_0(blocks: torch.Tensor) -> torch.Tensor:
    return halves(blocks[:, :2]) * blocks[:, 2:].view(torch.int8)


def scales_and_offsets(packed: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Twelve bytes of Q4_K and Q5_K to eight scales and eight offsets of six bits [n, 8, 1]"""
    first, second, third = packed.split(4, 1)
    scales = torch.cat([first & 63, third & 15 | first >> 6 << 4], 1)
    offsets = torch.cat([second & 63, third >> 4 | second >> 6 << 4], 1)
    return scales[..., None], offsets[..., None]


def decode_q4_k(blocks: torch.Tensor, fifth: torch.Tensor | int = 0) -> torch.Tensor:
    """fifth: [n, 8, 32], the fifth bit of each number."""
    scale, offset = halves(blocks[:, :4])[..., None].split(1, 1)
    scales, offsets = scales_and_offsets(blocks[:, 4:16])
    # 32 bytes hold one sub-block in their low halves and the next one in their high halves
    codes = half_bytes(blocks[:, -128:].unflatten(1, (4, 32))).view(-1, 8, 32) | fifth
    return codes.float().mul_(scale * scales).sub_(offset * offsets)


def decode_q5_k(blocks: torch.Tensor) -> torch.Tensor:
    return decode_q4_k(blocks, bits_of(blocks[:, 16:48], tuple(range(8))) << 4)


def decode_q6_k(blocks: torch.Tensor) -> torch.Tensor:
    low, high = blocks[:, :128].unflatten(1, (2, 2, 32)), blocks[:, 128:192].unflatten(1, (2, 32))
    scales = blocks[:, 192:208].view(torch.int8)
    codes = torch.cat([low & 15, low >> 4], 2) | bits_of(high, PAIRS, 3) << 4
    levels = codes.float().sub_(32).view(-1, 16, 16)
    return levels.mul_((halves(blocks[:, 208:]) * scales)[..., None])


def decode_q2_k(blocks: torch.Tensor) -> torch.Tensor:
    scale, offset = halves(blocks[:, 80:84]).split(1, 1)
    codes = bits_of(blocks[:, 16:80].unflatten(1, (2, 32)), PAIRS, 3).view(-1, 16, 16)
    scales, offsets = scale * (blocks[:, :16] & 15), offset * (blocks[:, :16] >> 4)
    return codes.float().mul_(scales[..., None]).sub_(offsets[..., None])


def decode_q3_k(blocks: torch.Tensor) -> torch.Tensor:
    codes = bits_of(blocks[:, 32:96].unflatten(1, (2, 32)), PAIRS, 3).flatten(1, 2)
    # the third bit says that nothing is taken away
    codes = codes | bits_of(blocks[:, :32], tuple(range(8))) << 2
    low, high = half_bytes(blocks[:, 96:104]), bits_of(blocks[:, 104:108], PAIRS, 3).flatten(1)
    scales = (low | high << 4).float() - 32
    levels = codes.float().sub_(4).view(-1, 16, 16)
    return levels.mul_((halves(blocks[:, 108:]) * scales)[..., None])


def iq4_levels(codes: torch.Tensor) -> torch.Tensor:
    """[..., 16] bytes to [..., 32]: the levels of the low halves, then of the high ones"""
    levels = torch.tensor(IQ4_LEVELS, dtype=torch.float32, device="cpu")
    places = half_bytes(codes)
    return levels.index_select(0, places.flatten().int()).view(places.shape)


def decode_iq4_nl(blocks: torch.Tensor) -> torch.Tensor:
    return halves(blocks[:, :2]) * iq4_levels(blocks[:, 2:])


def decode_iq4_xs(blocks: torch.Tensor) -> torch.Tensor:
    low = torch.stack([blocks[:, 4:8] & 15, blocks[:, 4:8] >> 4], 2).flatten(1)
    high = bits_of(blocks[:, 2:4], PAIRS, 3).transpose(1, 2).flatten(1)
    scales = (low | high << 4).float() - 32
    levels = iq4_levels(blocks[:, 8:].unflatten(1, (8, 16)))
    return levels.mul_((halves(blocks[:, :2]) * scales)[..., None])


# by type: numbers in a block, bytes of a block, and what reads it
DECODERS: dict[str, tuple[int, int, Decoder]] = {
    "Q4_0": (32, 18, decode_q4_0),
    "Q4_1": (32, 20, decode_q4_1),
    "Q5_0": (32, 22, decode_q5_0),
    "Q5_1": (32, 24, decode_q5_1),
    "Q8_0": (32, 34, decode_q8_0),
    "Q2_K": (256, 84, decode_q2_k),
    "Q3_K": (256, 110, decode_q3_k),
    "Q4_K": (256, 144, decode_q4_k),
    "Q5_K": (256, 176, decode_q5_k),
    "Q6_K": (256, 210, decode_q6_k),
    "IQ4_NL": (32, 18, decode_iq4_nl),
    "IQ4_XS": (256, 136, decode_iq4_xs),
}


def decode_rows(raw: torch.Tensor, type_name: str) -> torch.Tensor:
    """The numbers of whole rows: bytes [rows, bytes] to float32 [rows, inputs]."""
    _, block_bytes, decode = DECODERS[type_name]
    numbers = decode(raw.reshape(-1, block_bytes))
    return numbers.reshape(len(raw), -1)
