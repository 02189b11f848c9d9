"""The language model: Qwen2.5 with three-stream rotary positions.

Grouped-query attention (several query heads share a key head), SwiGLU, RMSNorm before each part.
`run` is the whole of it: packed rows of several sequences in, packed rows out, prompt or single
token alike. The ecosystem's padded door in front of it is `ecosystem/text_model.py`.

    N packed tokens · D hidden_size · H query heads, K key/value heads · d head size
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qwen25vl.config import Qwen2_5_VLTextConfig
from qwen25vl.errors import UsageError
from qwen25vl.kernels import ops
from qwen25vl.model.attention import Implementation, Weights, attend_causally
from qwen25vl.model.cache import KVCache
from qwen25vl.model.decoding import Decoder
from qwen25vl.model.layers import (
    Linear,
    RMSNorm,
    SwiGLU,
    TokenEmbedding,
    check_token_ids,
    initialise,
)
from qwen25vl.model.rope import Rotation, text_rotation

WatchStates = Callable[[torch.Tensor], torch.Tensor]
WatchWeights = Callable[[Weights], Weights]


class TextAttention(nn.Module):
    def __init__(
        self, config: Qwen2_5_VLTextConfig, layer: int, implementation: Implementation
    ) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        self.implementation: Implementation = implementation
        kv_width = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, config.hidden_size, bias=True)
        self.k_proj = Linear(config.hidden_size, kv_width, bias=True)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=True)
        self.o_proj = Linear(config.hidden_size, config.hidden_size, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        lengths: Sequence[int],
        caches: Sequence[KVCache] | None,
        watch_weights: WatchWeights | None = None,
    ) -> torch.Tensor:
        projections = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (
            p.unflatten(-1, (-1, self.head_dim)) for p in projections
        )  # [N, heads·d] -> [N, heads, d]
        q, k = ops.rotate(q, rotation), ops.rotate(k, rotation)
        keys, values = (list(x.transpose(0, 1).split(lengths, dim=1)) for x in (k, v))
        for index, cache in enumerate(caches or ()):
            keys[index], values[index] = cache.write(self.layer, keys[index], values[index])
        mixed = attend_causally(q, lengths, keys, values, self.implementation, watch_weights)
        return self.o_proj(mixed.flatten(1))  # type: ignore[no-any-return]


class DecoderLayer(nn.Module):
    def __init__(
        self, config: Qwen2_5_VLTextConfig, layer: int, implementation: Implementation
    ) -> None:
        super().__init__()
        self.self_attn = TextAttention(config, layer, implementation)
        self.mlp = SwiGLU(config.hidden_size, config.intermediate_size, bias=False)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        rotation: Rotation,
        lengths: Sequence[int],
        caches: Sequence[KVCache] | None,
        watch_weights: WatchWeights | None = None,
    ) -> torch.Tensor:
        rows = self.input_layernorm(x)
        x = ops.add(x, self.self_attn(rows, rotation, lengths, caches, watch_weights))
        return ops.add(x, self.mlp(self.post_attention_layernorm(x)))


class LanguageModel(nn.Module):
    def __init__(
        self, config: Qwen2_5_VLTextConfig, attn_implementation: Implementation = "sdpa"
    ) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = TokenEmbedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, attn_implementation)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.decoder = Decoder(self.layers, config)
        self.gradient_checkpointing = False
        initialise(self, config.initializer_range)

    def embed(self, token_ids: torch.Tensor) -> torch.Tensor:
        """Ids [N] to embeddings [N, D]. Raises TokenError for ids beyond the vocabulary."""
        if not token_ids.is_cpu:  # there a wrong id would end the process's use of the device
            check_token_ids(token_ids, len(self.embed_tokens.weight))
        embeds: torch.Tensor = self.embed_tokens(token_ids)
        return embeds

    def run(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        lengths: Sequence[int],
        caches: Sequence[KVCache] | None = None,
        watch_states: WatchStates | None = None,
        watch_weights: WatchWeights | None = None,
    ) -> torch.Tensor:
        """The pass of one step over packed sequences.

        embeds [N, D] and positions [3, N] hold `lengths` rows of each sequence, one sequence after
        another; caches, one per sequence, hold the tokens before and take the new ones.
        watch_states gets the residual stream before every layer, and the result; watch_weights the
        attention weights of every layer. What these return is used in its place. Returns [N, D],
        normed. Raises UsageError for embeddings of another width.
        """
        width = self.config.hidden_size
        if embeds.shape[1:] != (width,):
            raise UsageError(
                f"embeddings have shape {list(embeds.shape)}; expected [tokens, {width}]"
            )
        for cache, length in zip(caches or (), lengths, strict=caches is not None):
            cache.reserve(cache.length + length)
        rotation = text_rotation(positions, self.config, embeds.dtype)
        is_watched = watch_states is not None or watch_weights is not None
        at_once = None if is_watched else self.decoder.run(embeds, rotation, lengths, caches)
        x = embeds if at_once is None else at_once
        for layer in self.layers if at_once is None else ():
            if watch_states is not None:
                x = watch_states(x)
            inputs = (x, rotation, lengths, caches, *([watch_weights] if watch_weights else []))
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                x = layer(*inputs)
        for cache, length in zip(caches or (), lengths, strict=caches is not None):
            cache.advance(length)
        normed: torch.Tensor = self.norm(x)
        return normed if watch_states is None else watch_states(normed)


def next_positions(positions: torch.Tensor, lengths: Sequence[int]) -> list[int]:
    """Behind the largest position of each sequence: where its next token stands. positions: packed
    [3, N]."""
    return [int(part.max()) + 1 for part in positions.split(list(lengths), dim=1)]
