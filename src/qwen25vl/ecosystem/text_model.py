"""The language model behind the ecosystem's padded batches.

B batch · L padded length · N packed tokens · D hidden_size
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from qwen25vl.config import Qwen2_5_VLTextConfig
from qwen25vl.ecosystem.batch_cache import BatchCache
from qwen25vl.ecosystem.outputs import TextOutput
from qwen25vl.ecosystem.pretrained_model import PretrainedModel
from qwen25vl.ecosystem.watching import Watch, columns_of_tokens
from qwen25vl.errors import UsageError
from qwen25vl.model.attention import Implementation
from qwen25vl.model.cache import KVCache, check_caches
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.model.packing import Packing
from qwen25vl.model.text import LanguageModel, next_positions


class Qwen2_5_VLTextModel(PretrainedModel, LanguageModel):
    """The language model alone, with random weights; `from_pretrained` takes it from a
    checkpoint."""

    left_out: ClassVar[tuple[str, ...]] = ("lm_head.", "model.visual.")

    def __init__(
        self, config: Qwen2_5_VLTextConfig, attn_implementation: Implementation | None = None
    ) -> None:
        config.check()
        super().__init__(config, self.settle_attention(config, attn_implementation))

    @classmethod
    def assemble(cls, config: Any, implementation: Implementation, mrope: Any) -> Any:
        whole = Qwen2_5_VLCausalModel(config, implementation, mrope)
        whole.model.language_model = cls(config.text_config, implementation)
        whole.model.visual = None  # type: ignore[assignment]
        whole.lm_head = None
        return whole

    @classmethod
    def part_of(cls, whole: Any) -> Any:
        return whole.model.language_model

    def path_in_checkpoint(self) -> str:
        return "model.language_model"

    def get_input_embeddings(self) -> nn.Embedding:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value  # type: ignore[assignment]

    def get_decoder(self) -> Qwen2_5_VLTextModel:
        return self

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Sequence[KVCache] | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.Tensor | None = None,
    ) -> TextOutput | tuple[Any, ...]:
        """Padded tokens or embeddings to hidden states.

        input_ids [B, L] or inputs_embeds [B, L, D]; attention_mask [B, L], padding on either side;
        position_ids [3, B, L] or [B, L], by default counted on from the cache; past_key_values as
        an earlier call returned them. use_cache is on by default where no gradients are kept. The
        config says whether hidden states, attention weights (which are computed as an equation
        then, not by a kernel) and a TextOutput are returned, or with return_dict=False a tuple.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise UsageError("give either input_ids or inputs_embeds")
        shape = (input_ids if input_ids is not None else inputs_embeds).shape  # type: ignore[union-attr]
        packing = Packing.of((shape[0], shape[1]), attention_mask)
        if input_ids is not None:
            embeds = self.embed(packing.pack(input_ids))
        else:
            embeds = packing.pack(inputs_embeds)  # type: ignore[arg-type]
        caches = self.open_caches(packing, past_key_values, use_cache)
        check_cache_position(cache_position, caches)
        positions = self.read_positions(packing, position_ids, caches)
        config = self.config
        wants_states = choose(output_hidden_states, config.output_hidden_states)
        wants_weights = choose(output_attentions, config.output_attentions)
        out = self.run_padded(
            embeds, positions, packing, caches, wants_states, wants_weights, attention_mask
        )
        return out if choose(return_dict, config.return_dict) else out.to_tuple()

    def run_padded(
        self,
        embeds: torch.Tensor,
        positions: torch.Tensor,
        packing: Packing,
        caches: BatchCache | None,
        output_hidden_states: bool = False,
        output_attentions: bool = False,
        attention_mask: torch.Tensor | None = None,
    ) -> TextOutput:
        """`run`, its rows put back into their padded places, and the caches told where the next
        tokens stand."""
        watch = None
        if output_hidden_states or output_attentions:
            watch = Watch(packing, columns_of_tokens(packing, attention_mask, caches))
        hidden = self.run(
            embeds,
            positions.to(embeds.device),
            packing.lengths,
            caches,
            watch.see_states if watch is not None and output_hidden_states else None,
            watch.see_weights if watch is not None and output_attentions else None,
        )
        states = tuple(watch.states) if watch is not None and output_hidden_states else None
        weights = tuple(watch.weights) if watch is not None and output_attentions else None
        totals, following = packing.lengths, next_positions(positions, packing.lengths)
        if caches is not None:
            totals = [cache.length for cache in caches]
            for cache, part in zip(caches, positions.split(packing.lengths, dim=1), strict=True):
                cache.take_positions(part)
        rows = [[after - total] for after, total in zip(following, totals, strict=True)]
        deltas = torch.tensor(rows, dtype=torch.int64, device="cpu")
        last = packing.unpack(hidden) if states is None else states[-1]
        return TextOutput(last, caches, states, weights, deltas)

    def open_caches(
        self, packing: Packing, caches: Sequence[KVCache] | None, use_cache: bool | None
    ) -> BatchCache | None:
        """The caches given, fresh ones, or none. Where gradients are kept there is no cache: they
        do not flow through one."""
        if torch.is_grad_enabled():
            if use_cache or caches is not None:
                raise UsageError(
                    "gradients do not flow through a cache: use torch.no_grad(), or no cache"
                )
            return None
        weight = self.embed_tokens.weight
        if caches is not None:
            checked = check_caches(caches, len(packing.lengths), self.config, weight.dtype)
            return caches if isinstance(caches, BatchCache) else BatchCache(checked)
        if not choose(use_cache, self.config.use_cache):
            return None
        return BatchCache(
            KVCache(self.config, weight.dtype, weight.device, length) for length in packing.lengths
        )

    def read_positions(
        self,
        packing: Packing,
        position_ids: torch.Tensor | None,
        caches: Sequence[KVCache] | None,
        rope_deltas: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[3, N] from [3, B, L], from [B, L], from [4, B, L] (the places in the text come first),
        or counted on from the caches; rope_deltas [B, 1] say where otherwise, beside the number of
        tokens."""
        if position_ids is None:
            num_rows = len(packing.lengths)
            starts = [cache.next_position for cache in caches] if caches else [0] * num_rows
            if rope_deltas is not None:
                lengths = [cache.length for cache in caches] if caches else [0] * num_rows
                deltas = rope_deltas.flatten().tolist()
                starts = [n + int(delta) for n, delta in zip(lengths, deltas, strict=True)]
            ranges = [
                torch.arange(s, s + n, device="cpu")
                for s, n in zip(starts, packing.lengths, strict=True)
            ]
            return torch.cat(ranges).expand(3, -1)
        streams = position_ids if position_ids.ndim == 3 else position_ids.expand(3, -1, -1)
        streams = streams[1:] if len(streams) == 4 else streams
        if streams.shape != (3, *packing.mask.shape):
            raise UsageError(
                f"position_ids has shape {list(position_ids.shape)}; expected [3, B, L] or [B, L]"
            )
        return torch.stack([packing.pack(stream) for stream in streams])


def choose(given: bool | None, default: bool) -> bool:
    return default if given is None else given


def check_cache_position(cache_position: torch.Tensor | None, caches: BatchCache | None) -> None:
    """Refuse columns that do not go on where the cache ends."""
    length = 0 if caches is None else caches.get_seq_length()
    if cache_position is not None and int(cache_position.flatten()[0]) != length:
        raise UsageError(
            f"cache_position begins at {int(cache_position.flatten()[0])}, but the cache holds "
            f"{length} tokens"
        )
