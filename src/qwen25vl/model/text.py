"""The language model: Qwen2.5 with three-stream rotary positions.

Grouped-query attention (several query heads share a key head), SwiGLU, RMSNorm before each part.
`run` is the whole of it: packed rows of several sequences in, packed rows out, prompt or single
token alike. `forward` is the ecosystem's padded door in front of it.

    N packed tokens · D hidden_size · H query heads, K key/value heads · d head size
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from qwen25vl.config import Qwen2_5_VLTextConfig
from qwen25vl.errors import UsageError
from qwen25vl.inputs import brief
from qwen25vl.kernels import ops
from qwen25vl.model.attention import Implementation, attend_causally
from qwen25vl.model.cache import KVCache
from qwen25vl.model.decoding import Decoder
from qwen25vl.model.layers import Linear, RMSNorm, SwiGLU
from qwen25vl.model.packing import Packing
from qwen25vl.model.rope import Rotation, text_rotation


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
    ) -> torch.Tensor:
        projections = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (
            p.unflatten(-1, (-1, self.head_dim)) for p in projections
        )  # [N, heads·d] -> [N, heads, d]
        q, k = ops.rotate(q, rotation), ops.rotate(k, rotation)
        keys, values = (list(x.transpose(0, 1).split(lengths, dim=1)) for x in (k, v))
        for index, cache in enumerate(caches or ()):
            keys[index], values[index] = cache.write(self.layer, keys[index], values[index])
        mixed = attend_causally(q, lengths, keys, values, self.implementation)
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
    ) -> torch.Tensor:
        x = ops.add(x, self.self_attn(self.input_layernorm(x), rotation, lengths, caches))
        return ops.add(x, self.mlp(self.post_attention_layernorm(x)))


@dataclass(frozen=True)
class TextOutput:
    """last_hidden_state [B, L, D]; hidden_states: the embeddings, each layer's result, the last one
    normed; rope_deltas [B, 1]: next position − tokens so far."""

    last_hidden_state: torch.Tensor
    past_key_values: list[KVCache] | None
    hidden_states: tuple[torch.Tensor, ...] | None
    rope_deltas: torch.Tensor

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={brief(value)}" for name, value in vars(self).items())
        return f"TextOutput({shown})"


class Qwen2_5_VLTextModel(nn.Module):
    def __init__(
        self, config: Qwen2_5_VLTextConfig, attn_implementation: Implementation = "sdpa"
    ) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(
            DecoderLayer(config, layer, attn_implementation)
            for layer in range(config.num_hidden_layers)
        )
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.decoder = Decoder(self.layers, config)
        self.gradient_checkpointing = False

    def run(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        lengths: Sequence[int],
        caches: Sequence[KVCache] | None = None,
        hidden_states: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """The pass of one step over packed sequences.

        embeds [N, D] and positions [3, N] hold `lengths` rows of each sequence, one sequence after
        another; caches, one per sequence, hold the tokens before and take the new ones. A list
        given as `hidden_states` collects the residual stream before every layer. Returns [N, D],
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
        at_once = (
            self.decoder.run(embeds, rotation, lengths, caches) if hidden_states is None else None
        )
        x = embeds if at_once is None else at_once
        for layer in self.layers if at_once is None else ():
            if hidden_states is not None:
                hidden_states.append(x)
            if self.gradient_checkpointing and self.training:
                x = checkpoint(layer, x, rotation, lengths, caches, use_reentrant=False)
            else:
                x = layer(x, rotation, lengths, caches)
        for cache, length in zip(caches or (), lengths, strict=caches is not None):
            cache.advance(length)
        normed: torch.Tensor = self.norm(x)
        if hidden_states is not None:
            hidden_states.append(normed)
        return normed

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: list[KVCache] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool = False,
    ) -> TextOutput:
        """Padded tokens or embeddings to hidden states.

        input_ids [B, L] or inputs_embeds [B, L, D]; attention_mask [B, L], padding on either side;
        position_ids [3, B, L] or [B, L], by default counted on from the cache; past_key_values as
        an earlier call returned them. use_cache is on by default where no gradients are kept.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UsageError("give either input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        packing = Packing.of((inputs_embeds.shape[0], inputs_embeds.shape[1]), attention_mask)
        embeds = packing.pack(inputs_embeds)
        caches = self.open_caches(packing, past_key_values, use_cache)
        positions = self.read_positions(packing, position_ids, caches)
        return self.run_padded(embeds, positions, packing, caches, output_hidden_states)

    def run_padded(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        packing: Packing,
        caches: list[KVCache] | None,
        output_hidden_states: bool,
    ) -> TextOutput:
        """`run`, its rows put back into their padded places, and the caches told where the next
        tokens stand."""
        collected: list[torch.Tensor] | None = [] if output_hidden_states else None
        hidden = self.run(embeds, positions.to(embeds.device), packing.lengths, caches, collected)
        totals, following = packing.lengths, next_positions(positions, packing.lengths)
        if caches is not None:
            totals = [cache.length for cache in caches]
            for cache, position in zip(caches, following, strict=True):
                cache.next_position = position
        rows = [[after - total] for after, total in zip(following, totals, strict=True)]
        deltas = torch.tensor(rows, dtype=torch.int64, device="cpu")
        states = tuple(packing.unpack(x) for x in collected) if collected is not None else None
        return TextOutput(packing.unpack(hidden), caches, states, deltas)

    def open_caches(
        self, packing: Packing, caches: list[KVCache] | None, use_cache: bool | None
    ) -> list[KVCache] | None:
        """The caches given, fresh ones, or none. Where gradients are kept there is no cache: they
        do not flow through one."""
        if torch.is_grad_enabled():
            if use_cache or caches is not None:
                raise UsageError(
                    "gradients do not flow through a cache: use torch.no_grad(), or no cache"
                )
            return None
        if caches is not None:
            if len(caches) != len(packing.lengths):
                raise UsageError(
                    f"past_key_values has {len(caches)} sequences, the batch {len(packing.lengths)}"
                )
            return caches
        if use_cache is False:
            return None
        weight = self.embed_tokens.weight
        return [
            KVCache(self.config, weight.dtype, weight.device, length) for length in packing.lengths
        ]

    def read_positions(
        self, packing: Packing, position_ids: torch.Tensor | None, caches: list[KVCache] | None
    ) -> torch.Tensor:
        """[3, N] from [3, B, L], from [B, L], or counted on from the caches."""
        if position_ids is None:
            starts = (
                [cache.next_position for cache in caches] if caches else [0] * len(packing.lengths)
            )
            ranges = [
                torch.arange(s, s + n, device="cpu")
                for s, n in zip(starts, packing.lengths, strict=True)
            ]
            return torch.cat(ranges).expand(3, -1)
        streams = position_ids if position_ids.ndim == 3 else position_ids.expand(3, -1, -1)
        if streams.shape != (3, *packing.mask.shape):
            raise UsageError(
                f"position_ids has shape {list(position_ids.shape)}; expected [3, B, L] or [B, L]"
            )
        return torch.stack([packing.pack(stream) for stream in streams])


def next_positions(positions: torch.Tensor, lengths: Sequence[int]) -> list[int]:
    """Behind the largest position of each sequence: where its next token stands. positions: packed
    [3, N]."""
    return [int(part.max()) + 1 for part in positions.split(list(lengths), dim=1)]
