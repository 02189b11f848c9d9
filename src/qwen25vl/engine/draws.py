"""Random numbers for sampling, computed from their place instead of drawn from a state.

The number for a token depends on the sequence's key, on how many tokens the answer has, and on the
token's id; on nothing else. So an answer does not depend on the rest of a batch, and a token that a
rounding difference adds to the candidates does not change the numbers of the others.

The generator is SplitMix64 (Steele, Lea & Flood 2014, doi 10.1145/2660193.2660195): a counter in
steps of the golden ratio, and a mixing function in which every input bit changes every output bit
with probability one half.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
MASK = 2**64 - 1
GROUP_ID = MASK  # the id of the number that chooses between common and rare tokens


def make_key(seed: int, number: int) -> int:
    """The key of the answer with this number among those that share a seed."""
    digest = hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def uniforms(key: int, num_written: int, ids: NDArray[np.int64]) -> NDArray[np.float64]:
    """A number in (0, 1) for each token id, for the draw after `num_written` tokens."""
    counter = np.uint64(mix(key + GOLDEN * (num_written + 1)))
    z = counter + (ids.astype(np.uint64) + np.uint64(1)) * np.uint64(GOLDEN)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return ((z >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def uniform(key: int, num_written: int, token_id: int) -> float:
    """`uniforms` for one id below 2⁶⁴."""
    number = mix(mix(key + GOLDEN * (num_written + 1)) + (token_id + 1) * GOLDEN)
    return ((number >> 11) + 0.5) * 2.0**-53


def mix(number: int) -> int:
    """SplitMix64's output function."""
    z = number & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)
