"""Files that were cut off, changed, or made to do harm: an error of this package's own, soon, and
without more memory than the file is large."""

import json
import random
import struct
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from gguf_files import text, write_gguf
from gguf_models import make_tensors, write_model
from safetensors.torch import save_file

from qwen25vl.errors import CheckpointError
from qwen25vl.hub import resolve_folder
from qwen25vl.loading.checkpoint import Checkpoint
from qwen25vl.loading.gguf_weights import GgufWeights
from qwen25vl.single_file.gguf_config import describe_config
from qwen25vl.single_file.gguf_files import describe
from qwen25vl.single_file.gguf_header import read_header
from qwen25vl.single_file.safetensors_file import describe_config as describe_sizes
from qwen25vl.single_file.safetensors_file import read_header as read_safetensors

NUM_MUTANTS, NUM_MEASURED = 1500, 100


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def read_whole(path: Path) -> None:
    """All that is read of a GGUF file before its numbers."""
    header = read_header(path)
    weights = GgufWeights(path)
    for name in weights.keys():  # noqa: SIM118
        weights.get_tensor(name)
    describe(header, header, {})


def mutants(content: bytes, length: int, seed: int) -> Iterator[bytes]:
    """Changed bytes, numbers that are far too large, pieces taken out, repeated or cut off."""
    rng = random.Random(seed)
    huge = [struct.pack("<Q", value) for value in (2**63, 2**64 - 1, 2**40, 2**31, 0, 1)]
    for _ in range(NUM_MUTANTS):
        made = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            place = rng.randrange(length)
            kind = rng.randrange(6)
            if kind == 0:
                made[place] = rng.randrange(256)
            elif kind == 1:
                made[place : place + 8] = rng.choice(huge)
            elif kind == 2:
                made[place : place + 4] = struct.pack("<I", rng.choice([0, 9, 8, 30, 2**32 - 1]))
            elif kind == 3:
                del made[place : place + rng.randint(1, 40)]
            elif kind == 4:
                other = rng.randrange(length)
                made[place:place] = made[other : other + rng.randint(1, 60)]
            else:
                made = made[: rng.randrange(1, len(made))]
                break
        yield bytes(made)


@pytest.mark.parametrize("ollama", [False, True])
def test_changed_gguf_headers(ollama: bool, tmp_path: Path) -> None:
    """Thousands: each is read, or refused as damaged; nothing else is raised, and no count of a
    damaged header is believed."""
    path, _ = write_model(tmp_path, ("Q4_K", "F16"), ollama=ollama)
    content = path.read_bytes()
    length = min(tensor.start for tensor in read_header(path).tensors.values())
    # the vocabulary is most of the header: mutate before and behind it as often as in it
    begin = content.index(b"tokenizer.ggml.tokens")
    end = content.index(b"tokenizer.ggml.eos_token_id")
    small = content[:begin] + content[end:]
    mutant = tmp_path / "mutant.gguf"
    refused = peak = 0
    for number, made in enumerate(mutants(content, length, seed=1)):
        mutant.write_bytes(made)
        if number < NUM_MEASURED:
            tracemalloc.start()
        refused += is_refused(mutant)
        if number < NUM_MEASURED:
            peak = max(peak, tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        if number % 4 == 0:
            rest = next(mutants(small, len(small) - (len(content) - length), seed=number))
            mutant.write_bytes(rest)
            assert is_refused(mutant)
    assert refused > NUM_MUTANTS // 2
    assert 0 < peak < 2 * len(content)


def is_refused(path: Path) -> bool:
    """Whether a file is refused, in one line; any other error ends the test."""
    try:
        read_whole(path)
    except CheckpointError as error:
        return "\n" not in str(error)
    return False


def test_a_gguf_file_that_is_cut_off(tmp_path: Path) -> None:
    """At any place: an unfinished download is the commonest damage."""
    path, _ = write_model(tmp_path, ("Q8_0",))
    content = path.read_bytes()
    short = tmp_path / "short.gguf"
    for part in [0, 3, 4, 20, 24, 100, *range(1000, len(content) - 32, len(content) // 50)]:
        short.write_bytes(content[:part])
        with pytest.raises(CheckpointError, match=r"damaged or cut off|no GGUF file"):
            read_header(short)
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        resolve_folder(short)


def header(num_tensors: int, num_keys: int, rest: bytes = b"", version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_keys) + rest


def entry(name: str, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    sizes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return text(name) + sizes + struct.pack("<IQ", kind, offset)


ONE = entry("a", (32,), 0, 0)
CASES = [
    (header(0, 2**60), "keys do not fit into what is left"),
    (header(2**60, 0), "tensors do not fit"),
    (header(0, 0, version=1), "has version 1 of GGUF; 2 and 3 are read"),
    (header(0, 0, version=3 << 24), "big-endian machines are not read"),
    (header(0, 1, struct.pack("<Q", 2**62) + bytes(40)), "bytes of a text do not fit"),
    (header(0, 1, text("k") + struct.pack("<I", 77) + bytes(40)), "the unknown type 77"),
    (header(0, 1, text("k") + struct.pack("<IIQ", 9, 8, 2**61) + bytes(40)), "texts do not fit"),
    (header(0, 1, text("k") + struct.pack("<IIQ", 9, 12, 2**61) + bytes(9)), "numbers do not fit"),
    (header(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 1) + bytes(40)), "an array of the type 9"),
    (header(0, 2, 2 * (text("k") + struct.pack("<II", 4, 1)) + bytes(99)), "'k' is there twice"),
    (header(0, 1, struct.pack("<Q", 1) + b"\xff" + bytes(40)), "not UTF-8"),
    (header(2, 0, ONE + ONE + bytes(999)), "the tensor 'a' is there twice"),
    (header(2, 0, ONE + entry("b", (32,), 0, 64) + bytes(999)), "'b' overlaps"),
    (header(1, 0, entry("a", (32,), 0, 7) + bytes(999)), "begins at 7, no multiple of 32"),
    (header(1, 0, entry("a", (33,), 2, 0) + bytes(999)), "no whole blocks"),
    (header(1, 0, entry("a", (0, 5), 0, 0) + bytes(999)), "no whole blocks"),
    (header(1, 0, entry("a", (2**62, 2**62), 0, 0) + bytes(999)), "its tensors end at"),
    (header(1, 0, entry("a", (32,), 77, 0) + bytes(999)), "of the unknown type 77; take a file"),
    (header(1, 0, text("a") + struct.pack("<I", 9) + bytes(999)), "has 9 dimensions"),
]


@pytest.mark.parametrize(("content", "message"), CASES, ids=map(str, range(len(CASES))))
def test_gguf_headers_made_to_do_harm(content: bytes, message: str, tmp_path: Path) -> None:
    """Each says what is wrong."""
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_header(tmp_path / "bad.gguf")


METADATA = [
    ({"qwen2vl.block_count": "two"}, "qwen2vl.block_count is 'two'"),
    ({"qwen2vl.embedding_length": True}, "qwen2vl.embedding_length is True"),
    ({"qwen2vl.attention.head_count": None}, "lacks the key qwen2vl.attention.head_count"),
    ({"qwen2vl.rope.freq_base": "x"}, "qwen2vl.rope.freq_base is 'x'"),
    ({"tokenizer.ggml.tokens": ["a"]}, "the tokenizer's lists do not fit each other"),
    ({"tokenizer.ggml.merges": ["a"]}, "the tokenizer's lists do not fit each other"),
    ({"tokenizer.ggml.merges": ["a zzz"]}, "merges name tokens that it does not have"),
    ({"tokenizer.ggml.merges": 3}, "has no tokenizer: tokenizer.ggml.merges is missing"),
    ({"tokenizer.ggml.pre": "llama-bpe"}, "has the tokenizer 'gpt2' with 'llama-bpe'"),
    ({"tokenizer.ggml.model": "llama"}, "has the tokenizer 'llama' with 'qwen2'"),
    ({"general.alignment": 3}, "general.alignment is 3"),
    ({"qwen2vl.attention.head_count": 7}, "does not divide by num_attention_heads 7"),
    ({"qwen2vl.rope.dimension_sections": [1, 2, 3, 0]}, "mrope_section"),
    ({"qwen2vl.rope.scaling.type": "longrope"}, "rope_scaling type 'longrope' is unknown"),
    ({"qwen2vl.block_count": 2**31}, "block_count is 2147483648, its tensors are those of 2"),
    ({"qwen2vl.block_count": 1}, "block_count is 1, its tensors are those of 2 blocks"),
    ({"qwen2vl.attention.head_count_kv": 1}, "tensors do not match: .*config.json makes it"),
]


@pytest.mark.parametrize(("changes", "message"), METADATA, ids=map(str, range(len(METADATA))))
def test_gguf_keys_that_do_not_fit(
    changes: dict[str, object], message: str, tmp_path: Path
) -> None:
    """By key and value, or by the tensors that they contradict."""
    from qwen25vl import load

    path, _ = write_model(tmp_path, ("F16",))
    metadata = {k: v for k, v in (read_header(path).metadata | changes).items() if v is not None}
    tensors, _, _ = make_tensors(("F16",), "F16", tied=True, ollama=False, seed=0)
    write_gguf(path, metadata, tensors)
    with pytest.raises(CheckpointError, match=message):
        load(path)


def test_changed_safetensors_headers(tmp_path: Path) -> None:
    """The same for single safetensors files, whose sizes are read off their header."""
    shapes = {
        "model.embed_tokens.weight": (8, 128), "model.layers.0.self_attn.q_proj.weight": (128, 128),
        "model.layers.0.self_attn.k_proj.weight": (128, 128),
        "model.layers.0.mlp.gate_proj.weight": (64, 128), "lm_head.weight": (8, 128),
        "visual.patch_embed.proj.weight": (80, 3, 2, 2, 2),
        "visual.blocks.0.mlp.gate_proj.weight": (8, 80), "visual.merger.mlp.2.weight": (128, 320),
    }  # fmt: skip
    path = tmp_path / "one.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, path)
    content = path.read_bytes()
    assert describe_sizes(read_safetensors(path), path)["hidden_size"] == 128
    length = 8 + int.from_bytes(content[:8], "little")
    mutant = tmp_path / "mutant.safetensors"
    refused = 0
    for made in mutants(content, length, seed=2):
        mutant.write_bytes(made)
        try:
            describe_sizes(read_safetensors(mutant), mutant)
        except CheckpointError:
            refused += 1
        else:
            (tmp_path / "folder").mkdir(exist_ok=True)
            (tmp_path / "folder" / "model.safetensors").write_bytes(made)
            try:
                Checkpoint(tmp_path / "folder")
            except CheckpointError:
                refused += 1
    assert refused > NUM_MUTANTS // 2


def test_offsets_of_safetensors(tmp_path: Path) -> None:
    """Tensors that overlap, lie outside of the file, or leave a hole."""
    for spans in ([[0, 16], [8, 24]], [[0, 16], [16, 64]], [[0, 16], [24, 40]], [[16, 0], [0, 16]]):
        entries = {
            name: {"dtype": "F32", "shape": [4], "data_offsets": span}
            for name, span in zip("ab", spans, strict=True)
        }
        content = json.dumps(entries).encode()
        path = tmp_path / "model.safetensors"
        path.write_bytes(len(content).to_bytes(8, "little") + content + bytes(40))
        with pytest.raises(CheckpointError, match="damaged or cut off"):
            Checkpoint(tmp_path)


def test_nested_json(tmp_path: Path) -> None:
    """A header of a million brackets ends in an error, not in the end of the process."""
    text_of_brackets = b"[" * 1_000_000
    path = tmp_path / "deep.safetensors"
    path.write_bytes(len(text_of_brackets).to_bytes(8, "little") + text_of_brackets)
    with pytest.raises(CheckpointError, match="damaged"):
        read_safetensors(path)
    (tmp_path / "list.safetensors").write_bytes((2).to_bytes(8, "little") + json.dumps([]).encode())
    with pytest.raises(CheckpointError, match="damaged"):
        read_safetensors(tmp_path / "list.safetensors")


def test_the_config_of_a_whole_file_is_the_one_expected(tmp_path: Path) -> None:
    """The mutants are made of a file that is read."""
    path, _ = write_model(tmp_path, ("F16",), ollama=True)
    assert describe_config(read_header(path), read_header(path))["num_hidden_layers"] == 2
    read_whole(path)
