"""The class that the ecosystem knows: the whole model, and its methods to load, save and answer.

B batch · L padded length
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from threading import Lock
from typing import Any, Self

import torch

from qwen25vl.ecosystem.adapters import AdapterNames, Adapters, check_load_options
from qwen25vl.ecosystem.batch_cache import BatchCache
from qwen25vl.ecosystem.causal_model import PaddedCausalModel
from qwen25vl.ecosystem.foreign import read_options
from qwen25vl.ecosystem.generation_inputs import forward_arguments, read_additions, read_prompts
from qwen25vl.ecosystem.transition_scores import transition_scores
from qwen25vl.engine.additions import Additions
from qwen25vl.engine.answers import GenerateOutput
from qwen25vl.engine.constraint import StartConstraint
from qwen25vl.engine.engine import Engine
from qwen25vl.engine.generate import ChunkStream, Streamer, ended_on_error, generate, stream
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.processors import AllowedTokens
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.hub import resolve_folder
from qwen25vl.inputs import ModelInputs, Patches
from qwen25vl.loading.adapter import read_adapter
from qwen25vl.processing.tokenizer import Tokenizer

ENGINE_LOCK = Lock()  # held while an engine is made, which takes no time


class Qwen2_5_VLForConditionalGeneration(PaddedCausalModel):
    """A model with random weights, to be trained; `from_pretrained` loads one."""

    _engine: Engine | None = None
    _adapters: Adapters | None = None

    @property
    def engine(self) -> Engine:
        """What runs all answers of this model, however many threads ask."""
        with ENGINE_LOCK:
            if self._engine is None:
                self._engine = Engine(self)
            return self._engine

    @property
    def adapters(self) -> Adapters:
        if self._adapters is None:
            self._adapters = Adapters()
        return self._adapters

    @property
    def in_force(self) -> PaddedCausalModel:
        adapted = None if self._adapters is None else self._adapters.find(self, None)
        return self if adapted is None else adapted

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._adapters is not None:
            self._adapters.apply(fn)
        return self

    def load_adapter(
        self,
        peft_model_id: str | Path,
        adapter_name: str = "default",
        *,
        revision: str | None = None,
        cache_dir: str | Path | None = None,
        local_files_only: bool = False,
        token: str | bool | None = None,
        **options: Any,
    ) -> None:
        """Load a LoRA adapter, a folder or a hub name in PEFT's layout, beside this model and put
        it in force. The model's own weights stay as they are.

        options: options of transformers that have no effect here. Raises UsageError for a name that
        is taken, CheckpointError (TensorError) for files that are missing or do not fit, HubError.
        """
        hub: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir, "token": token}
        check_load_options(options, self.load_adapter)
        folder = resolve_folder(
            peft_model_id, files="adapter", local_files_only=local_files_only, **hub
        )
        self.adapters.add(self, adapter_name, read_adapter(folder))

    def set_adapter(self, adapter_name: str | list[str]) -> None:
        """Put one of the adapters in force: for `forward`, and for answers that name none."""
        self.adapters.choose(adapter_name)

    def disable_adapters(self) -> None:
        """Let the model itself answer."""
        self.adapters.enable(False)

    def enable_adapters(self) -> None:
        """Put the last adapter in force again."""
        self.adapters.enable(True)

    def active_adapters(self) -> list[str]:
        """The name of the adapter that was last put in force."""
        self.adapters.expect_some()
        return [] if self.adapters.active is None else [self.adapters.active]

    def delete_adapter(self, adapter_names: str | list[str]) -> None:
        """Forget adapters, and free their memory."""
        names = [adapter_names] if isinstance(adapter_names, str) else adapter_names
        self.adapters.delete(names)

    def __getstate__(self) -> dict[str, Any]:
        """Without the engine: a copy has one of its own."""
        return {name: value for name, value in vars(self).items() if name != "_engine"}

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | Patches | None = None,
        pixel_values_videos: torch.Tensor | Patches | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        *,
        inputs: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        past_key_values: Any = None,
        generation_config: Any = None,
        logits_processor: Any = None,
        stopping_criteria: Any = None,
        prefix_allowed_tokens_fn: AllowedTokens | None = None,
        streamer: Streamer | None = None,
        tokenizer: Tokenizer | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        visual_cache: VisualCache | None = None,
        adapter_names: AdapterNames = None,
        **options: Any,
    ) -> torch.Tensor | GenerateOutput:
        """Answer prompts: ids [B · num_return_sequences, L + new], or a GenerateOutput if asked
        for.

        The inputs are a processor's, by name or as a whole. inputs: another name for input_ids;
        inputs_embeds [B, L, D]: in place of the embeddings of the ids; without ids, only the new
        ones are returned. past_key_values: of a GenerateOutput or of `forward`, for the beginning
        of the prompts, which are given as a whole; a list gets the new caches. logits_processor:
        functions (input_ids, scores) -> scores; stopping_criteria: functions (input_ids, scores) ->
        bool, or lists of them. Each is called for one answer at a time, without padding: [1, n] and
        [1, V]. What they raise ends this call alone. adapter_names: of one adapter, or of one for
        each prompt; "__base__" stands for none, None for the one in force.

        options are the fields of GenerationConfig (max_new_tokens, temperature, …). They override
        generation_config, which overrides the checkpoint's. generation_config: a GenerationConfig,
        that of transformers, an object with its attributes, or a mapping. An unknown option raises
        OptionError.
        """
        given = {"input_ids": input_ids, "attention_mask": attention_mask,
                 "pixel_values": pixel_values, "image_grid_thw": image_grid_thw,
                 "pixel_values_videos": pixel_values_videos, "video_grid_thw": video_grid_thw,
                 "second_per_grid_ts": second_per_grid_ts}  # fmt: skip
        with ended_on_error(streamer):
            first = self.config.text_config.bos_token_id
            prompts = read_prompts(given, inputs, inputs_embeds, first)
            calls = logits_processor, stopping_criteria, prefix_allowed_tokens_fn
            added = read_additions(self, prompts, past_key_values, *calls)
            config = self.resolve_generation(generation_config, options)
            adapted = self.adapters.find_each(self, adapter_names, len(prompts.inputs.input_ids))
        watched = {"streamer": streamer, "progress": progress}
        known = {"tokenizer": tokenizer, "visual_cache": visual_cache}
        how: dict[str, Any] = {**watched, **known, "added": added, "adapted": adapted}
        out = generate(self.engine, prompts.inputs, config, **how)
        return with_batch_cache(out)

    def stream(
        self,
        inputs: ModelInputs | Mapping[str, Any] | torch.Tensor,
        tokenizer: Tokenizer | None = None,
        *,
        generation_config: Any = None,
        progress: Callable[[str, int, int], None] | None = None,
        visual_cache: VisualCache | None = None,
        prefix_cache: PrefixCache | None = None,
        adapter_names: AdapterNames = None,
        constraint: StartConstraint | None = None,
        **options: Any,
    ) -> ChunkStream:
        """Answer prompts token by token: a processor's inputs, or ids [B, L] alone; the rest as in
        `generate`. Without a tokenizer, chunks have no text. prefix_cache: keeps the caches
        of these sequences, and serves what a prompt has in common with those that it keeps.
        constraint: makes the state of a grammar for each answer (`structured.Grammar.start`)."""
        config = self.resolve_generation(generation_config, options)
        prompts = read_prompts({}, inputs, None, self.config.text_config.bos_token_id)
        adapted = self.adapters.find_each(self, adapter_names, len(prompts.inputs.input_ids))
        return stream(
            self.engine,
            prompts.inputs,
            config,
            tokenizer=tokenizer,
            progress=progress,
            visual_cache=visual_cache,
            prefix_cache=prefix_cache,
            added=Additions(constraint=constraint),
            adapted=adapted,
        )

    def prepare_inputs_for_generation(
        self,
        input_ids: torch.Tensor,
        past_key_values: Any = None,
        attention_mask: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        **others: Any,
    ) -> dict[str, Any]:
        """Arguments of `forward` for the tokens that are not in the caches yet, for a loop of your
        own. The engine does not call it."""
        return forward_arguments(input_ids, past_key_values, attention_mask, inputs_embeds, others)

    def compute_transition_scores(
        self,
        sequences: torch.Tensor,
        scores: tuple[torch.Tensor, ...],
        beam_indices: torch.Tensor | None = None,
        normalize_logits: bool = False,
    ) -> torch.Tensor:
        """The score of each written token [S, new], from a GenerateOutput's fields. beam_indices:
        of a beam search. normalize_logits: log-probabilities in place of scores."""
        return transition_scores(sequences, scores, beam_indices, normalize_logits)

    def resolve_generation(self, config: Any, options: dict[str, Any]) -> GenerationConfig:
        """The call's options over the config given, over the checkpoint's (or config.json's end
        token)."""
        base = self.generation_config
        if not isinstance(base, GenerationConfig):  # none, or one of transformers that was assigned
            text = self.config.text_config
            ends = {"eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
            base = GenerationConfig.from_dict(ends).merge(**read_options(base))
        is_own = isinstance(config, GenerationConfig)
        given = config.in_turn(base) if is_own else (read_options(config),)
        return base.merge_in_turn(*given, options)


def with_batch_cache(out: torch.Tensor | GenerateOutput) -> torch.Tensor | GenerateOutput:
    """The caches of an output as `forward` gives them."""
    if isinstance(out, torch.Tensor) or out.past_key_values is None:
        return out
    return replace(out, past_key_values=BatchCache(out.past_key_values))
