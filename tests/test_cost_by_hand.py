"""The cost of one small model by hand: every number below was worked out on paper from the sizes,
not by the functions that are tested."""

import pytest

from qwen25vl import Qwen2_5_VLConfig, Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig
from qwen25vl.config import RopeScaling
from qwen25vl.measure import cost

# a text model of 10 layers of width 64: q and o 64×64, k and v 64×32, three matrices of 64×100;
# 2 heads of 32, 1 key/value head; 1000 words
ROPE = RopeScaling(mrope_section=(4, 6, 6))
TEXT = Qwen2_5_VLTextConfig(1000, 64, 100, 10, 2, 1, rope_scaling=ROPE)
# an encoder of 6 blocks of width 32: qkv 32×96, projection 32×32, three matrices of 32×48; two
# blocks see whole frames; the merger maps 128 to 128 to 64
VISION = Qwen2_5_VLVisionConfig(6, 32, 48, 2, out_hidden_size=64, fullatt_block_indexes=(2, 5))
CONFIG = Qwen2_5_VLConfig(TEXT, VISION, tie_word_embeddings=True)
WEIGHTS = 10 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 100)  # 314,880 in the layers
# each rate another power of ten: what is divided by the wrong one is far off
RATES = cost.Rates(vision=1e12, prefill=1e8, decode=1e5, read=1e6)
GRID = (1, 10, 20)  # a picture of 200 patches


def test_operations_of_the_encoder() -> None:
    """200 patches; windows of 8×8 patches cut 10×20 into 8+2 rows and 8+8+4 columns."""
    rows = 2 * 200 * (1176 * 32 + 6 * (32 * 96 + 32 * 32 + 3 * 32 * 48))
    merger = 2 * 50 * (128 * 128 + 128 * 64)
    seen = 2 * 200 * 200 + 4 * (64 * 64 + 64 * 64 + 32 * 32 + 16 * 16 + 16 * 16 + 8 * 8)
    attention = 2 * 2 * 32 * seen  # q·k and the sum of v: two products of the width, two each
    assert cost.vision_operations(VISION, [GRID]) == rows + merger + attention
    clip = (3, 10, 20)  # frames of a clip do not see each other
    assert cost.vision_operations(VISION, [clip]) == 3 * (rows + merger + attention)


def test_operations_of_a_prompt() -> None:
    """5 tokens see 1+2+3+4+5 tokens; 5 more behind them see 6+7+8+9+10."""
    first, second = 15, 40
    assert cost.text_operations(TEXT, 5) == 2 * 5 * WEIGHTS + 10 * 4 * 64 * first
    assert cost.text_operations(TEXT, 5, 5) == 2 * 5 * WEIGHTS + 10 * 4 * 64 * second


@pytest.mark.parametrize(
    ("precision", "layers", "head", "number"),
    [
        ("float32", 4 * WEIGHTS, 4 * 64000, 4),
        ("bfloat16", 2 * WEIGHTS, 2 * 64000, 2),
        ("int8", WEIGHTS, 64000, 2),
        ("int4", WEIGHTS / 2, 64000, 2),
        ("int8+vision", WEIGHTS, 64000, 2),
        ("int4+vision", WEIGHTS / 2, 64000, 2),
    ],
)
def test_seconds_by_hand(precision: str, layers: float, head: int, number: int) -> None:
    """Bytes of the layers and of the head over the rates that belong to them; keys and values of
    100 tokens. Of the quantised layers' scales a twentieth is allowed for, of the typical run over
    the best one an eighth: an estimate three times too high, or int4 at ten times its bytes, passed
    where two estimates were compared with each other."""
    found = cost.estimate(CONFIG, RATES, [GRID], 100, precision)
    operations = 2 * 100 * WEIGHTS + 10 * 4 * 64 * 5050
    stored = 10 * 2 * 32 * 100 * number  # keys and values
    choice = head / 1e6 + 0.0005 + 1000 * 8e-9
    assert 1 <= found.vision / (cost.vision_operations(VISION, [GRID]) / 1e12) <= 1.125
    assert 1 <= (found.prefill - choice) / (operations / 1e8) <= 1.125
    assert 1 <= (found.token - choice - stored / 1e6) / (layers / 1e5) <= 1.125 * 1.05


@pytest.mark.parametrize(("precision", "number"), [("float32", 4), ("bfloat16", 2), ("int4", 2)])
def test_a_longer_prompt_makes_a_token_dearer_by_its_keys_and_values(
    precision: str, number: int
) -> None:
    """10 layers × keys and values × 32 numbers × 900 more tokens, read at the rate of reading."""
    short, long = (cost.estimate(CONFIG, RATES, [], n, precision).token for n in (100, 1000))
    assert long - short == pytest.approx(10 * 2 * 32 * 900 * number / 1e6)


def test_the_official_3b_by_hand() -> None:
    """Published: 3.09 billion parameters in the language model, of which 0.31 billion are word
    vectors; a token of bfloat16 reads twice that."""
    text = Qwen2_5_VLTextConfig(151936, 2048, 11008, 36, 16, 2)
    config = Qwen2_5_VLConfig(text, Qwen2_5_VLVisionConfig(), tie_word_embeddings=True)
    rates = cost.Rates(vision=1e12, prefill=1e12, decode=1e10, read=1e10)
    found = cost.estimate(config, rates, [], 1, "bfloat16")
    assert found.vision == 0
    assert found.token == pytest.approx(2 * 3.09e9 / 1e10, rel=0.1)
