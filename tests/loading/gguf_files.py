"""GGUF files for the tests, written as ggml describes them: header field by field, blocks of random
codes with scales of a useful size. What the blocks stand for is worked out here by formulas of its
own, in numpy; nothing of the package's reader is used."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

Array = NDArray[Any]
U8, F32, F16 = np.uint8, np.float32, np.float16
TYPE_IDS = {
    "F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8, "Q2_K": 10,
    "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14, "IQ4_NL": 20, "IQ4_XS": 23, "BF16": 30,
    "IQ1_S": 19,
}  # fmt: skip
# numbers in a block, its bytes, where its float16 scale lies, where its float16 offset, and how
# large the integers are that the scale multiplies
LAYOUT = {
    "Q4_0": (32, 18, 0, None, 8), "Q4_1": (32, 20, 0, 2, 8), "Q5_0": (32, 22, 0, None, 16),
    "Q5_1": (32, 24, 0, 2, 16), "Q8_0": (32, 34, 0, None, 128), "Q2_K": (256, 84, 80, 82, 24),
    "Q3_K": (256, 110, 108, None, 64), "Q4_K": (256, 144, 0, 2, 500),
    "Q5_K": (256, 176, 0, 2, 1000), "Q6_K": (256, 210, 208, None, 2000),
    "IQ4_NL": (32, 18, 0, None, 100), "IQ4_XS": (256, 136, 0, None, 2000),
}  # fmt: skip
IQ4 = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], dtype=F32
)


def random_blocks(shape: tuple[int, ...], kind: str, rng: np.random.Generator) -> Array:
    """Bytes of a matrix whose numbers are about 0.1 large."""
    per, size, scale, offset, levels = LAYOUT[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // per, size), dtype=U8)
    for place, factor in ((scale, 0.2), (offset, 0.1)):
        if place is not None:
            numbers = factor / levels * rng.uniform(0.5, 1.5, (len(blocks), 1))
            if place == offset and kind in ("Q4_1", "Q5_1"):
                numbers *= -levels  # there it is added as it is
            blocks[:, place : place + 2] = numbers.astype(F16).view(U8)
    return blocks


def halves(blocks: Array) -> Array:
    return np.ascontiguousarray(blocks).view(F16).astype(F32)


def nibbles(codes: Array) -> Array:
    return np.concatenate([codes & 15, codes >> 4], -1)


def high5(blocks: Array) -> Array:
    words = np.ascontiguousarray(blocks).view(np.uint32)
    return ((words >> np.arange(32, dtype=np.uint32)) & 1).astype(U8) << 4


def k_scales(s: Array) -> tuple[Array, Array]:
    s = s.astype(np.int32)
    scales = np.concatenate([s[:, :4] & 63, (s[:, 8:] & 15) | ((s[:, :4] >> 6) << 4)], -1)
    mins = np.concatenate([s[:, 4:8] & 63, (s[:, 8:] >> 4) | ((s[:, 4:8] >> 6) << 4)], -1)
    return scales.astype(F32), mins.astype(F32)


def q4_k(b: Array) -> Array:
    scales, mins = k_scales(b[:, 4:16])
    q = b[:, 16:].reshape(-1, 4, 32)
    q = np.stack([q & 15, q >> 4], 2).reshape(-1, 8, 32)
    return (halves(b[:, :2]) * scales)[..., None] * q - (halves(b[:, 2:4]) * mins)[..., None]


def q5_k(b: Array) -> Array:
    scales, mins = k_scales(b[:, 4:16])
    q = b[:, 48:].reshape(-1, 4, 32)
    q = np.stack([q & 15, q >> 4], 2).reshape(-1, 8, 32)
    q = q | (((b[:, None, 16:48] >> np.arange(8)[:, None]) & 1) << 4)
    return (halves(b[:, :2]) * scales)[..., None] * q - (halves(b[:, 2:4]) * mins)[..., None]


def q6_k(b: Array) -> Array:
    low, high = b[:, :128].reshape(-1, 2, 2, 32), b[:, 128:192].reshape(-1, 2, 1, 32)
    q = np.concatenate([low & 15, low >> 4], 2)
    q = (q | (((high >> np.array([0, 2, 4, 6])[:, None]) & 3) << 4)).astype(F32) - 32
    scales = np.ascontiguousarray(b[:, 192:208]).view(np.int8).astype(F32)
    return (halves(b[:, 208:]) * scales)[..., None] * q.reshape(-1, 16, 16)


def q2_k(b: Array) -> Array:
    s, q = b[:, :16], b[:, 16:80].reshape(-1, 2, 1, 32)
    q = ((q >> np.array([0, 2, 4, 6])[:, None]) & 3).reshape(-1, 16, 16)
    scale, offset = halves(b[:, 80:82]), halves(b[:, 82:84])
    return (scale * (s & 15))[..., None] * q - (offset * (s >> 4))[..., None]


def q3_k(b: Array) -> Array:
    h, q, s = b[:, :32], b[:, 32:96].reshape(-1, 2, 1, 32), b[:, 96:108]
    q = ((q >> np.array([0, 2, 4, 6])[:, None]) & 3).reshape(-1, 8, 32).astype(np.int32)
    q = q - 4 * (1 - ((h[:, None, :] >> np.arange(8)[:, None]) & 1).astype(np.int32))
    low = np.concatenate([s[:, :8] & 15, s[:, :8] >> 4], -1)
    high = (s[:, None, 8:] >> np.array([0, 2, 4, 6])[:, None]) & 3
    scales = (low | (high.reshape(-1, 16) << 4)).astype(F32) - 32
    return (halves(b[:, 108:]) * scales)[..., None] * q.reshape(-1, 16, 16)


def iq4_xs(b: Array) -> Array:
    high = np.ascontiguousarray(b[:, 2:4]).view(np.uint16).astype(np.int32)
    low, j = b[:, 4:8].astype(np.int32), np.arange(8)
    scales = ((low[:, j // 2] >> 4 * (j % 2)) & 15) | (((high >> 2 * j) & 3) << 4)
    q = IQ4[nibbles(b[:, 8:].reshape(-1, 8, 16))]
    return (halves(b[:, :2]) * (scales - 32))[..., None] * q


def q5(b: Array, start: int) -> Array:
    return (nibbles(b[:, start + 4 :]) | high5(b[:, start : start + 4])).astype(F32)


MEANT: dict[str, Any] = {
    "Q4_0": lambda b: halves(b[:, :2]) * (nibbles(b[:, 2:]).astype(F32) - 8),
    "Q4_1": lambda b: halves(b[:, :2]) * nibbles(b[:, 4:]) + halves(b[:, 2:4]),
    "Q5_0": lambda b: halves(b[:, :2]) * (q5(b, 2) - 16),
    "Q5_1": lambda b: halves(b[:, :2]) * q5(b, 4) + halves(b[:, 2:4]),
    "Q8_0": lambda b: halves(b[:, :2]) * np.ascontiguousarray(b[:, 2:]).view(np.int8),
    "IQ4_NL": lambda b: halves(b[:, :2]) * IQ4[nibbles(b[:, 2:])],
    "Q2_K": q2_k, "Q3_K": q3_k, "Q4_K": q4_k, "Q5_K": q5_k, "Q6_K": q6_k, "IQ4_XS": iq4_xs,
}  # fmt: skip


def numbers_of(blocks: Array, shape: tuple[int, ...], kind: str) -> torch.Tensor:
    """What the blocks stand for, in float32."""
    return torch.from_numpy(MEANT[kind](blocks).astype(F32).reshape(shape))


def plain_bytes(tensor: torch.Tensor, kind: str) -> Array:
    types = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return tensor.to(types[kind]).contiguous().view(torch.uint8).numpy().reshape(-1)


def text(value: str) -> bytes:
    encoded = value.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def typed(value: Any) -> bytes:
    """A value with its type before it."""
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + text(value)
    kinds = {bool: 7, int: 5, float: 6, str: 8}
    form = {7: "?", 5: "i", 6: "f"}
    kind = kinds[type(value[0])]
    head = struct.pack("<IIQ", 9, kind, len(value))
    if kind == 8:
        return head + b"".join(map(text, value))
    return head + struct.pack(f"<{len(value)}{form[kind]}", *value)


Tensors = dict[str, tuple[tuple[int, ...], str, Array]]
"""By name: shape as torch has it, type, bytes."""


def write_gguf(path: Path, metadata: dict[str, Any], tensors: Tensors, alignment: int = 32) -> Path:
    if alignment != 32:
        metadata = {**metadata, "general.alignment": alignment}
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    header += b"".join(text(name) + typed(value) for name, value in metadata.items())
    offset = 0
    data = b""
    for name, (shape, kind, content) in tensors.items():
        header += text(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        header += struct.pack("<IQ", TYPE_IDS[kind], offset)
        raw = content.tobytes()
        data += raw + bytes(-len(raw) % alignment)
        offset = len(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + bytes(-len(header) % alignment) + data)
    return path


TEXT_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip
VISION_NAMES = {
    "attn.proj": "attn_out", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down", "norm1": "ln1", "norm2": "ln2",
}  # fmt: skip


def text_name(hub: str) -> str:
    """A tensor of the language model under llama.cpp's name."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "lm_head.weight": "output.weight",
             "model.norm.weight": "output_norm.weight"}  # fmt: skip
    if hub in whole:
        return whole[hub]
    _, _, number, rest = hub.split(".", 3)
    part, _, kind = rest.rpartition(".")
    return f"blk.{number}.{TEXT_NAMES[part]}.{kind}"


def vision_tensors(hub: str, tensor: torch.Tensor, ollama: bool) -> dict[str, torch.Tensor]:
    """A tensor of the vision encoder as the tensors that it is stored as."""
    if hub == "visual.patch_embed.proj.weight":
        names = (("v.patch_embd_0.weight", "v.patch_embd_1.weight") if ollama
                 else ("v.patch_embd.weight", "v.patch_embd.weight.1"))  # fmt: skip
        return dict(zip(names, tensor.unbind(2), strict=True))
    if hub.startswith("visual.merger."):
        rest = hub.removeprefix("visual.merger.")
        if ollama:
            return {f"v.merger.{rest}": tensor}
        name = "v.post_ln.weight" if rest == "ln_q.weight" else rest.replace("mlp.", "mm.")
        return {name: tensor}
    _, _, number, rest = hub.split(".", 3)
    part, _, kind = rest.rpartition(".")
    if part == "attn.qkv":
        thirds = zip("qkv", tensor.chunk(3), strict=True)
        return {f"v.blk.{number}.attn_{name}.{kind}": third for name, third in thirds}
    return {f"v.blk.{number}.{VISION_NAMES[part]}.{kind}": tensor}


def text_metadata(config: dict[str, Any], tokenizer: dict[str, Any]) -> dict[str, Any]:
    """As llama.cpp's converter writes it."""
    vocabulary = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    added = {token["id"]: token for token in tokenizer["added_tokens"]}
    tokens, types = [], []
    for number in range(config["vocab_size"]):
        if number in added:
            tokens.append(added[number]["content"])
            looks_special = tokens[-1].startswith("<|") and tokens[-1].endswith("|>")
            types.append(3 if added[number]["special"] or looks_special else 4)
        else:
            tokens.append(vocabulary.get(number, f"[PAD{number}]"))
            types.append(1 if number in vocabulary else 5)
    merges = [m if isinstance(m, str) else " ".join(m) for m in tokenizer["model"]["merges"]]
    sizes = {
        "block_count": config["num_hidden_layers"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "feed_forward_length": config["intermediate_size"],
        "attention.head_count": config["num_attention_heads"],
        "attention.head_count_kv": config["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": config["rms_norm_eps"],
        "rope.freq_base": config["rope_theta"],
        "rope.dimension_sections": [*config["rope_scaling"]["mrope_section"], 0],
    }
    return {
        "general.architecture": "qwen2vl",
        "general.type": "model",
        "general.file_type": 15,
        "general.quantization_version": 2,
        **{f"qwen2vl.{name}": value for name, value in sizes.items()},
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "qwen2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.eos_token_id": config["eos_token_id"],
        "tokenizer.ggml.padding_token_id": config["bos_token_id"],
        "tokenizer.ggml.bos_token_id": config["bos_token_id"],
        "tokenizer.ggml.add_bos_token": False,
    }


def vision_metadata(vision: dict[str, Any]) -> dict[str, Any]:
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "qwen2.5vl_merger",
        "clip.use_silu": True,
        "clip.vision.projection_dim": vision["out_hidden_size"],
        "clip.vision.image_size": 560,
        "clip.vision.patch_size": vision["patch_size"],
        "clip.vision.embedding_length": vision["hidden_size"],
        "clip.vision.feed_forward_length": vision["intermediate_size"],
        "clip.vision.block_count": vision["depth"],
        "clip.vision.attention.head_count": vision["num_heads"],
        "clip.vision.attention.layer_norm_epsilon": 1e-6,
        "clip.vision.image_mean": [0.48145466, 0.4578275, 0.40821073],
        "clip.vision.image_std": [0.26862954, 0.26130258, 0.27577711],
        "clip.vision.n_wa_pattern": vision["fullatt_block_indexes"][0] + 1,
    }


def ollama_metadata(text: dict[str, Any], vision: dict[str, Any]) -> dict[str, Any]:
    """One file for both parts, as Ollama's converter writes it."""
    made = {name.replace("qwen2vl.", "qwen25vl."): value for name, value in text.items()}
    section = made.pop("qwen25vl.rope.dimension_sections")
    own = {
        "block_count": vision["depth"], "embedding_length": vision["hidden_size"],
        "attention.head_count": vision["num_heads"], "num_channels": 3,
        "patch_size": vision["patch_size"], "spatial_merge_size": 2, "window_size": 112,
        "attention.layer_norm_epsilon": 1e-6, "rope.freq_base": 1e4, "temporal_patch_size": 2,
        "fullatt_block_indexes": vision["fullatt_block_indexes"],
    }  # fmt: skip
    return {
        **made,
        "general.architecture": "qwen25vl",
        "qwen25vl.rope.mrope_section": section[:3],
        **{f"qwen25vl.vision.{name}": value for name, value in own.items()},
    }
