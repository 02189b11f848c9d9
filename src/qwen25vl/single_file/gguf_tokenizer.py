"""The tokenizer in a GGUF file's metadata, as tokenizer.json and tokenizer_config.json.

The file holds every token with its type, and the merges. How text is split is named only, by
tokenizer.ggml.pre. Tokens of the type "unused" fill the rows beyond the vocabulary; they are left
out, so that no answer can spell one.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen25vl.config_values import shown
from qwen25vl.errors import CheckpointError
from qwen25vl.single_file import official

PREFIX = "tokenizer.ggml."
NORMAL, CONTROL, USER_DEFINED = 1, 3, 4
ALIKE = ("qwen2",)  # values of `pre` that split text as this model does


def read_tokenizer(metadata: Mapping[str, Any], path: Path) -> tuple[dict[str, Any], ...]:
    """The contents of tokenizer.json and tokenizer_config.json.

    Raises CheckpointError for a file without a tokenizer, or with that of another model.
    """
    kind, split = metadata.get(f"{PREFIX}model"), metadata.get(f"{PREFIX}pre")
    if kind != "gpt2" or split not in ALIKE:
        raise CheckpointError(
            f"{path} has the tokenizer {shown(kind)} with {shown(split)}; Qwen2.5-VL "
            "has 'gpt2' with 'qwen2'"
        )
    tokens, types = (read_list(metadata, name, path) for name in ("tokens", "token_type"))
    merges = read_list(metadata, "merges", path)
    pairs = [merge.split(" ") for merge in merges if isinstance(merge, str)]
    if len(types) != len(tokens) or {len(pair) for pair in pairs} - {2} or len(pairs) < len(merges):
        raise CheckpointError(f"{path}: the tokenizer's lists do not fit each other")
    if not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(f"{path}: the tokenizer's tokens are no texts")
    vocabulary = {t: n for n, (t, kind) in enumerate(zip(tokens, types, strict=True))
                  if kind == NORMAL}  # fmt: skip
    # the library that reads what is made here does not survive a merge of tokens that are not there
    if any(not {first, second, first + second} <= vocabulary.keys() for first, second in pairs):
        raise CheckpointError(f"{path}: the tokenizer's merges name tokens that it does not have")
    added = [
        added_token(number, token, kind)
        for number, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind in (CONTROL, USER_DEFINED)
    ]
    return describe_tokenizer(vocabulary, pairs, added), describe_config(metadata, tokens, added)


def read_list(metadata: Mapping[str, Any], name: str, path: Path) -> list[Any]:
    values = metadata.get(PREFIX + name)
    if not isinstance(values, list):
        raise CheckpointError(f"{path} has no tokenizer: {PREFIX}{name} is missing")
    return values


def added_token(number: int, text: str, kind: int) -> dict[str, Any]:
    is_special = kind == CONTROL and text not in official.ORDINARY_TOKENS
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": text, **flags, "special": is_special}


def describe_tokenizer(
    vocabulary: Mapping[str, int], merges: list[list[str]], added: list[dict[str, Any]]
) -> dict[str, Any]:
    """tokenizer.json."""
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False}
    split = {
        "type": "Split",
        "pattern": {"Regex": official.SPLIT_PATTERN},
        "behavior": "Isolated",
        "invert": False,
    }
    pieces = [split, {**byte_level, "use_regex": False}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pieces},
        "post_processor": {**byte_level, "use_regex": False},
        "decoder": {**byte_level, "use_regex": False},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }


def describe_config(
    metadata: Mapping[str, Any], tokens: list[str], added: list[dict[str, Any]]
) -> dict[str, Any]:
    """tokenizer_config.json."""
    special = [token["content"] for token in added if token["special"]]
    return {
        "add_bos_token": False,
        "add_prefix_space": False,
        "added_tokens_decoder": {
            str(token["id"]): {key: value for key, value in token.items() if key != "id"}
            for token in added
        },
        "additional_special_tokens": [text for text in special if text != "<|endoftext|>"],
        "bos_token": None,
        "clean_up_tokenization_spaces": False,
        "eos_token": token_of(metadata, "eos", tokens, "<|im_end|>"),
        "errors": "replace",
        "model_max_length": 131072,
        "pad_token": token_of(metadata, "padding", tokens, "<|endoftext|>"),
        "split_special_tokens": False,
        "tokenizer_class": "Qwen2Tokenizer",
        "unk_token": None,
    }


def token_of(metadata: Mapping[str, Any], name: str, tokens: list[str], default: str) -> str:
    number = metadata.get(f"{PREFIX}{name}_token_id")
    return tokens[number] if type(number) is int and 0 <= number < len(tokens) else default
