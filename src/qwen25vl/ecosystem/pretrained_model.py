"""What code for transformers expects of every model class, whatever part of the model it is.

The classes below `model/` compute; the public classes put these methods in front of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self, cast

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from qwen25vl.config_base import ModelConfig
from qwen25vl.ecosystem.embeddings import resize_embeddings
from qwen25vl.ecosystem.pretrained import check_attention, load_pretrained, parse_dtype
from qwen25vl.ecosystem.saving_options import check_save_options
from qwen25vl.errors import OptionError, UsageError
from qwen25vl.model.attention import IMPLEMENTATIONS, Implementation

CHECKPOINT_OPTIONS = {"use_reentrant", "preserve_rng_state", "determinism_check"}


class PretrainedModel(nn.Module):
    """The base of the public model classes, beside the class that computes."""

    base_model_prefix: ClassVar[str] = "model"
    main_input_name: ClassVar[str] = "input_ids"
    supports_gradient_checkpointing: ClassVar[bool] = True
    _no_split_modules: ClassVar[list[str]] = ["DecoderLayer", "VisionBlock"]
    left_out: ClassVar[tuple[str, ...]] = ()  # tensors of a checkpoint that this part lacks

    config: Any
    model_tags: tuple[str, ...] = ()
    input_hook: RemovableHandle | None = None

    from_pretrained = classmethod(load_pretrained)

    @staticmethod
    def settle_attention(config: ModelConfig, given: Implementation | None) -> Implementation:
        """The implementation asked for, else the config's; the config then names it."""
        chosen: Any = given or config._attn_implementation or "sdpa"
        if chosen not in IMPLEMENTATIONS:
            known = ", ".join(IMPLEMENTATIONS)
            raise OptionError(f"attn_implementation is {chosen!r}; known are {known}")
        config._attn_implementation = chosen  # type: ignore[misc]
        return cast(Implementation, chosen)

    @classmethod
    def assemble(cls, config: Any, implementation: Implementation, mrope: Any) -> Any:
        """A whole model, as a checkpoint describes it, around one of this class."""
        raise NotImplementedError

    @classmethod
    def part_of(cls, whole: Any) -> Any:
        """What `assemble` was built around."""
        raise NotImplementedError

    @classmethod
    def from_config(
        cls,
        config: ModelConfig,
        *,
        attn_implementation: Implementation | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
    ) -> Self:
        """A model with random weights."""
        model = cls(config, attn_implementation)
        wanted = dtype if dtype is not None else torch_dtype
        chosen = None if wanted is None else parse_dtype(wanted)
        return model if chosen is None else model.to(chosen)

    _from_config = from_config

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        is_main_process: bool = True,
        state_dict: Mapping[str, torch.Tensor] | None = None,
        max_shard_size: int | str = "5GB",
        safe_serialization: bool = True,
        push_to_hub: bool = False,
        variant: str | None = None,
    ) -> None:
        """Write config, generation config and weights in the hub's layout; transformers loads them
        too.

        max_shard_size: bytes of the largest file, as a number or like "5GB". state_dict: the
        tensors to write instead of the model's own. Another process than the main one writes
        nothing. Raises OptionError for what is not supported, CheckpointError where the folder
        cannot be written.
        """
        from qwen25vl.loading.saving import save_part

        max_bytes = check_save_options(
            max_shard_size, safe_serialization=safe_serialization, push_to_hub=push_to_hub,
            variant=variant,
        )  # fmt: skip
        if is_main_process:
            save_part(self, self.path_in_checkpoint(), save_directory, max_bytes, state_dict)

    def path_in_checkpoint(self) -> str:
        """Where this part stands in a whole model."""
        raise NotImplementedError

    def get_input_embeddings(self) -> nn.Module:
        raise NotImplementedError

    def set_input_embeddings(self, value: nn.Module) -> None:
        raise NotImplementedError

    def get_output_embeddings(self) -> nn.Module | None:
        """The layer that makes logits; a part without one has None."""
        return None

    def get_decoder(self) -> nn.Module:
        """The language model."""
        raise NotImplementedError

    def can_generate(self) -> bool:
        return False

    def post_init(self) -> None:
        """Called at the end of a subclass's constructor: nothing is left to do, each part has
        initialised its weights."""

    def add_model_tags(self, tags: str | list[str]) -> None:
        """Words for a model card, which trainers write; kept in `model_tags`."""
        new = [tags] if isinstance(tags, str) else tags
        self.model_tags += tuple(tag for tag in new if tag not in self.model_tags)

    def tie_weights(self) -> None:
        """Nothing is tied in a part without a head."""

    @property
    def base_model(self) -> nn.Module:
        return cast(nn.Module, getattr(self, self.base_model_prefix, self))

    @property
    def name_or_path(self) -> str:
        return str(self.config.name_or_path)

    @property
    def dtype(self) -> torch.dtype:
        return cast(torch.Tensor, self.get_input_embeddings().weight).dtype

    @property
    def device(self) -> torch.device:
        return cast(torch.Tensor, self.get_input_embeddings().weight).device

    def num_parameters(self, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
        """Numbers in all parameters, the weights of quantised layers not counted."""
        left_out = {id(self.get_input_embeddings().weight)} if exclude_embeddings else set()
        counted = [p for p in self.parameters() if id(p) not in left_out]
        return sum(p.numel() for p in counted if p.requires_grad or not only_trainable)

    def get_memory_footprint(self, return_buffers: bool = True) -> int:
        """Bytes of all parameters, and of the buffers, which hold quantised weights."""
        tensors = [*self.parameters(), *(self.buffers() if return_buffers else ())]
        return sum(tensor.nbytes for tensor in tensors)

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Module:
        """Give the vocabulary another size, and the head with it; returns the input embeddings.

        New rows are the mean of the old ones, or with mean_resizing=False random.
        """
        resize_embeddings(self, new_num_tokens, pad_to_multiple_of, mean_resizing)
        return self.get_input_embeddings()

    @property
    def is_gradient_checkpointing(self) -> bool:
        return any(getattr(part, "gradient_checkpointing", False) for part in self.modules())

    def gradient_checkpointing_enable(
        self,
        gradient_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """Keep only each block's input for the backward pass and compute the block again there.

        gradient_checkpointing_kwargs: as for torch.utils.checkpoint. The variant that is not
        reentrant is used whatever they say; it has the same gradients. Raises OptionError for an
        unknown one, and where only some blocks are to be computed again or inputs to be moved.
        """
        for name in gradient_checkpointing_kwargs or {}:
            if name not in CHECKPOINT_OPTIONS:
                known = ", ".join(sorted(CHECKPOINT_OPTIONS))
                raise OptionError(f"gradient_checkpointing_kwargs has {name!r}; known are {known}")
        if every_n_layers != 1 or offload:
            raise OptionError("every_n_layers must be 1 and offload False; nothing else is there")
        self.switch_checkpointing(True)

    def activation_checkpointing_enable(
        self,
        activation_checkpointing_kwargs: Mapping[str, Any] | None = None,
        every_n_layers: int = 1,
        offload: bool = False,
    ) -> None:
        """The newer name of `gradient_checkpointing_enable`."""
        self.gradient_checkpointing_enable(activation_checkpointing_kwargs, every_n_layers, offload)

    def gradient_checkpointing_disable(self) -> None:
        self.switch_checkpointing(False)

    def activation_checkpointing_disable(self) -> None:
        self.switch_checkpointing(False)

    def switch_checkpointing(self, is_on: bool) -> None:
        for part in self.modules():
            if "gradient_checkpointing" in vars(part):
                part.gradient_checkpointing = is_on  # type: ignore[assignment]

    def enable_input_require_grads(self) -> None:
        """Let gradients flow back to the embeddings' output while the embeddings are frozen."""

        def require_grad(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            output.requires_grad_(True)

        self.disable_input_require_grads()
        self.input_hook = self.get_input_embeddings().register_forward_hook(require_grad)

    def disable_input_require_grads(self) -> None:
        if self.input_hook is not None:
            self.input_hook.remove()
            self.input_hook = None

    def set_attn_implementation(self, attn_implementation: str | Mapping[str, str]) -> None:
        """Compute attention in another way: one name, or a mapping with "text_config",
        "vision_config" and "" for both. Raises OptionError and DependencyError as
        `from_pretrained` does."""
        chosen = attn_implementation
        names = {"": chosen} if isinstance(chosen, str) else dict(chosen)
        if unknown := sorted(names.keys() - {"", "text_config", "vision_config"}):
            raise UsageError(
                f"attn_implementation names {unknown}; known are text_config, vision_config"
            )
        for name in names.values():
            check_attention(name, self.device)
        for path, part in self.named_modules():
            if "implementation" in vars(part):
                tower = "vision_config" if "blocks." in path else "text_config"
                part.implementation = names.get(tower, names.get("", part.implementation))
        for tower, name in names.items():
            config = getattr(self.config, tower, self.config) if tower else self.config
            config._attn_implementation = name
