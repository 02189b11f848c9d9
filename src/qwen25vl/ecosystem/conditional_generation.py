"""The class that the ecosystem knows: the whole model, and its methods to load, save and answer.

B batch · L padded length
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from qwen25vl.ecosystem.foreign import read_options
from qwen25vl.ecosystem.pretrained import load_pretrained
from qwen25vl.engine.engine import Engine
from qwen25vl.engine.generate import ChunkStream, GenerateOutput, Streamer, generate, stream
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.engine.prefix import PrefixCache
from qwen25vl.engine.visual_cache import VisualCache
from qwen25vl.inputs import ModelInputs, Patches
from qwen25vl.model.causal import Qwen2_5_VLCausalModel
from qwen25vl.processing.tokenizer import Tokenizer

ENGINE_LOCK = Lock()  # held while an engine is made, which takes no time


class Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLCausalModel):
    """A model with random weights, to be trained; `from_pretrained` loads one."""

    _engine: Engine | None = None

    @property
    def engine(self) -> Engine:
        """What runs all answers of this model, however many threads ask."""
        with ENGINE_LOCK:
            if self._engine is None:
                self._engine = Engine(self)
            return self._engine

    def __getstate__(self) -> dict[str, Any]:
        """Without the engine: a copy has one of its own."""
        return {name: value for name, value in vars(self).items() if name != "_engine"}

    from_pretrained = classmethod(load_pretrained)  # type: ignore[var-annotated]

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config, generation config and weights in the hub's layout; `transformers` loads
        them too."""
        from qwen25vl.loading.saving import save_model

        save_model(self, folder)

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.Tensor | Patches | None = None,
        pixel_values_videos: torch.Tensor | Patches | None = None,
        image_grid_thw: torch.Tensor | None = None,
        video_grid_thw: torch.Tensor | None = None,
        second_per_grid_ts: torch.Tensor | None = None,
        *,
        mm_token_type_ids: torch.Tensor | None = None,
        generation_config: Any = None,
        streamer: Streamer | None = None,
        tokenizer: Tokenizer | None = None,
        progress: Callable[[str, int, int], None] | None = None,
        visual_cache: VisualCache | None = None,
        **options: Any,
    ) -> torch.Tensor | GenerateOutput:
        """Answer prompts: ids [B · num_return_sequences, L + new], or a GenerateOutput if asked
        for.

        The inputs are a processor's, by name; mm_token_type_ids say what the ids say, and have no
        effect. options are the fields of GenerationConfig
        (max_new_tokens, temperature, …). They override generation_config, which overrides the
        checkpoint's. generation_config: a GenerationConfig, that of transformers, an object with
        its attributes, or a mapping. An unknown option raises OptionError.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        pictures, videos = (pixel_values, image_grid_thw), (pixel_values_videos, video_grid_thw)
        inputs = ModelInputs(input_ids, attention_mask, *pictures, *videos, second_per_grid_ts)
        config = self.resolve_generation(generation_config, options)
        return generate(
            self.engine,
            inputs,
            config,
            streamer=streamer,
            tokenizer=tokenizer,
            progress=progress,
            visual_cache=visual_cache,
        )

    def stream(
        self,
        inputs: ModelInputs,
        tokenizer: Tokenizer,
        *,
        generation_config: Any = None,
        progress: Callable[[str, int, int], None] | None = None,
        visual_cache: VisualCache | None = None,
        prefix_cache: PrefixCache | None = None,
        **options: Any,
    ) -> ChunkStream:
        """Answer prompts token by token; the rest as in `generate`. prefix_cache: keeps the caches
        of these sequences, and serves what a prompt has in common with those that it keeps."""
        config = self.resolve_generation(generation_config, options)
        return stream(
            self.engine,
            inputs,
            config,
            tokenizer=tokenizer,
            progress=progress,
            visual_cache=visual_cache,
            prefix_cache=prefix_cache,
        )

    def resolve_generation(self, config: Any, options: dict[str, Any]) -> GenerationConfig:
        """The call's options over the config given, over the checkpoint's (or config.json's end
        token)."""
        base: Any = self.generation_config
        if not isinstance(base, GenerationConfig):  # none, or one of transformers that was assigned
            text = self.config.text_config
            ends = {"eos_token_id": text.eos_token_id, "pad_token_id": text.pad_token_id}
            base = GenerationConfig.from_dict(ends).merge(**read_options(base))
        is_own = isinstance(config, GenerationConfig)
        chosen: GenerationConfig = (
            config.over(base) if is_own else base.merge(**read_options(config))
        )
        return chosen.merge(**options)
