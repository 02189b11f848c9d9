"""A tokenizer's files in every form in which checkpoints have them, as one description.

Usually that is tokenizer.json. Older saves have vocab.json and merges.txt alone, with the added
tokens in tokenizer_config.json or added_tokens.json; how text is split, which these do not say, is
the same for every Qwen2.5 model.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen25vl.arguments import plain_number
from qwen25vl.config_values import (
    check_depth,
    named_file,
    read_json,
    read_mapping,
    read_text,
    shown,
)
from qwen25vl.errors import CheckpointError
from qwen25vl.single_file import official
from qwen25vl.single_file.gguf_tokenizer import describe_tokenizer

MAX_TOKENS = 2**31
EOS_TOKEN, PAD_TOKEN = "<|im_end|>", "<|endoftext|>"  # where no file names them


@dataclass(frozen=True)
class TokenizerFiles:
    """text: a tokenizer.json without its added tokens, read from `path`; added: these, as objects
    with "id", "content" and "special"."""

    path: Path
    text: str
    added: list[dict[str, Any]]
    eos_token: str
    pad_token: str


def read_tokenizer_files(folder: Path) -> TokenizerFiles:
    """Read a folder's tokenizer. Raises CheckpointError where its files are missing or damaged."""
    config_path = folder / "tokenizer_config.json"
    config = read_json(config_path) if config_path.exists() else {}
    path = folder / "tokenizer.json"
    if not path.exists() and not (folder / "vocab.json").exists():
        raise CheckpointError(
            f"{folder} has no tokenizer: neither tokenizer.json nor vocab.json; give processor= "
            "(--processor) a folder that has one"
        )
    if path.exists():
        before, listed, after = cut_added_tokens(path)
        added = [check_token(token, number_of(token), path) for token in listed]
        text = f"{before}[]{after}"
    else:
        path, added = folder / "vocab.json", []
        text = json.dumps(describe_tokenizer(read_vocabulary(path), read_merges(folder), []))
    added = with_others(added, folder, config)
    known = {token["content"] for token in added}
    pad_token = PAD_TOKEN if PAD_TOKEN in known else EOS_TOKEN
    return TokenizerFiles(
        path,
        text,
        added,
        token_text(config.get("eos_token"), EOS_TOKEN),
        token_text(config.get("pad_token"), pad_token),
    )


def with_others(
    added: list[dict[str, Any]], folder: Path, config: dict[str, Any]
) -> list[dict[str, Any]]:
    """The added tokens of tokenizer.json, and those that only the files beside it have."""
    known = {token["content"]: token for token in added}
    numbers = {token["id"] for token in added}
    path = folder / "tokenizer_config.json"
    with named_file(path):
        decoder = read_mapping(config, "added_tokens_decoder")
    others = [check_token(token, number, path) for number, token in decoder.items()]
    path = folder / "added_tokens.json"
    texts = read_json(path) if path.exists() else {}
    for text, number in texts.items():
        token = {"content": text, "special": text in official.SPECIAL_TOKENS}
        others.append(check_token(token, number, path))
    for token in others:
        if token["content"] not in known and token["id"] not in numbers:
            known[token["content"]] = token
            numbers.add(token["id"])
    return sorted(known.values(), key=lambda token: int(token["id"]))


def check_token(token: Any, number: Any, path: Path) -> dict[str, Any]:
    """An added token with its number as an int. Raises CheckpointError for what is none."""
    content = token.get("content") if isinstance(token, dict) else None
    known = plain_number(number, from_text=True)
    if not isinstance(content, str) or not content or not isinstance(known, int):
        wanted = "an added token has a number and a text"
        raise CheckpointError(f"{path}: {wanted}, not {shown(number)} and {shown(token)}")
    if not 0 <= known < MAX_TOKENS:
        raise CheckpointError(f"{path}: the added token {shown(content)} has the number {known}")
    return {**token, "id": known}


def read_vocabulary(path: Path) -> dict[str, Any]:
    """vocab.json. Raises CheckpointError unless it gives each token a number of its own."""
    found = read_json(path)
    numbers = {n for n in found.values() if type(n) is int and 0 <= n < MAX_TOKENS}
    if len(numbers) != len(found):
        raise CheckpointError(f"{path} must give each token a number of its own")
    return found


def read_merges(folder: Path) -> list[list[str]]:
    """merges.txt: two tokens in each line, after a line with the version."""
    path = folder / "merges.txt"
    lines = read_text(path).split("\n")
    merges = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    if any(len(pair) != 2 for pair in merges):
        raise CheckpointError(f"{path} must have two tokens in each line")
    return merges


def number_of(token: Any) -> Any:
    return token.get("id") if isinstance(token, dict) else None


def cut_added_tokens(path: Path) -> tuple[str, list[Any], str]:
    """tokenizer.json around its added tokens, and these:
    parsing its 10 MB twice would take most of a start."""
    text = read_text(path)
    if '"added_tokens"' not in text:
        raise CheckpointError(f"{path} is not a tokenizer: it has no added_tokens")
    try:
        start = text.index("[", text.index('"added_tokens"'))
        added, stop = json.JSONDecoder().raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from None
    check_depth(added, path)
    return text[:start], added, text[stop:]


def token_text(value: Any, default: str) -> str:
    """tokenizer_config.json spells a token as a text or as an object with `content`."""
    if value is None:
        return default
    return str(value.get("content")) if isinstance(value, dict) else str(value)
