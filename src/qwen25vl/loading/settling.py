"""What a checkpoint's tensors say better than its config.json: the vocabulary, and whether the head
is tied to the embeddings. Both keys move and go stale when programs save a model anew.
"""

from __future__ import annotations

import warnings
from copy import deepcopy

import torch

from qwen25vl.config import Qwen2_5_VLConfig
from qwen25vl.loading.checkpoint import EMBEDDINGS, TIED_HEAD, Checkpoint


def settle_config(config: Qwen2_5_VLConfig, checkpoint: Checkpoint) -> Qwen2_5_VLConfig:
    """The config as the tensors have it. What changes the model is said.

    Of a tied head that is stored alone the embeddings are the same matrix; one that is stored
    beside other embeddings is not tied to them.
    """
    stored = checkpoint.stored
    is_tied = config.tie_word_embeddings
    if is_tied and TIED_HEAD in stored and EMBEDDINGS not in stored:
        stored[EMBEDDINGS] = stored.pop(TIED_HEAD)
    elif is_tied and has_both(checkpoint):
        if torch.equal(checkpoint.read(TIED_HEAD), checkpoint.read(EMBEDDINGS)):
            del stored[TIED_HEAD]  # some saves repeat it
        else:
            is_tied = False
            warnings.warn(
                f"{checkpoint.folder}: config.json ties the head to the embeddings, but both are "
                "stored and differ; the head is used as it is stored",
                stacklevel=4,
            )
    num_rows = config.text_config.vocab_size
    if EMBEDDINGS in stored and len(stored[EMBEDDINGS].shape) == 2:
        num_rows = stored[EMBEDDINGS].shape[0]
    slots = config.image_token_id, config.video_token_id
    if num_rows <= max(slots):
        num_rows = config.text_config.vocab_size  # no vocabulary of this model: `match` says so
    if (num_rows, is_tied) == (config.text_config.vocab_size, config.tie_word_embeddings):
        return config
    settled = deepcopy(config)
    settled.text_config.vocab_size, settled.tie_word_embeddings = num_rows, is_tied
    return settled


def has_both(checkpoint: Checkpoint) -> bool:
    """Whether head and embeddings are both stored, as numbers that need no decoding."""
    stored = [checkpoint.stored.get(key) for key in (TIED_HEAD, EMBEDDINGS)]
    return all(tensor is not None and tensor.decode is None for tensor in stored)
