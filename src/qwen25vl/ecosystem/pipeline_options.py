"""The options of a pipeline's call: those of the call itself over those of the pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypedDict

from qwen25vl.arguments import refuse_unknown
from qwen25vl.ecosystem.pipeline_records import Form
from qwen25vl.engine.option_values import OTHERS
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import UsageError
from qwen25vl.question import GenerationOptions


class OwnOptions(TypedDict, total=False):
    """What a call says by name, beside options of the answer; None: what the pipeline was made
    with."""

    generate_kwargs: Mapping[str, Any] | None
    return_full_text: bool | None
    return_tensors: bool | None
    continue_final_message: bool | None
    add_generation_prompt: bool | None
    stop_sequence: str | Sequence[str] | None
    skip_special_tokens: bool | None
    clean_up_tokenization_spaces: bool | None
    video_fps: float | None
    min_pixels: int | None
    max_pixels: int | None
    processor_kwargs: Mapping[str, Any] | None
    batch_size: int | None
    timeout: float | None


class PipelineOptions(OwnOptions, GenerationOptions, total=False):
    """All options of a call."""


OWN_OPTIONS = tuple(OwnOptions.__annotations__)


@dataclass(frozen=True)
class PipelineCall:
    """What one call of the pipeline asks for, whatever its inputs are.

    processing: options of the processor. generation: options of `generate`.
    """

    form: Form
    continue_final_message: bool | None
    batch_size: int
    video_fps: float | None
    processing: Mapping[str, Any]
    skip_special_tokens: bool
    generation: Mapping[str, Any]


def call_options() -> list[str]:
    """What the pipeline's call takes by name, beside its inputs."""
    generation = [field.name for field in fields(GenerationConfig)]
    return [
        *OWN_OPTIONS,
        *generation,
        *OTHERS,
        "generation_config",
    ]


def read_call(defaults: Mapping[str, Any], given: Mapping[str, Any]) -> PipelineCall:
    """Options of a call over those of the pipeline. Raises OptionError for an unknown one,
    UsageError for some that exclude each other."""
    refuse_unknown(given, call_options())
    chosen = {name: value for name, value in given.items() if value is not None}
    kept = {name: value for name, value in defaults.items() if value is not None}
    by_keyword = {**(kept.pop("generate_kwargs", None) or {}), **kept}
    named = chosen.pop("generate_kwargs", None) or {}
    own = {name: chosen.get(name, by_keyword.get(name)) for name in OWN_OPTIONS}
    beside = {name: value for name, value in chosen.items() if name not in OWN_OPTIONS}
    generation = join_options(named, {**beside, "stop_strings": own["stop_sequence"]})
    earlier = {name: value for name, value in by_keyword.items() if name not in OWN_OPTIONS}
    continues = own["continue_final_message"]
    if continues is None and own["add_generation_prompt"] is not None:
        continues = not own["add_generation_prompt"]
    sizes = {name: own[name] for name in ("min_pixels", "max_pixels")}
    skips = own["skip_special_tokens"]
    return PipelineCall(
        form=choose_form(own["return_full_text"], own["return_tensors"]),
        continue_final_message=continues,
        batch_size=1 if own["batch_size"] is None else own["batch_size"],
        video_fps=own["video_fps"],
        processing={**sizes, **(own["processor_kwargs"] or {})},
        skip_special_tokens=True if skips is None else skips,
        generation={**earlier, **generation},
    )


def choose_form(return_full_text: bool | None, return_tensors: bool | None) -> Form:
    if return_full_text is not None and return_tensors is not None:
        raise UsageError("return_full_text and return_tensors exclude each other")
    if return_tensors:
        return "ids"
    return "new" if return_full_text is False else "full"


def join_options(
    generate_kwargs: Mapping[str, Any] | None, beside: Mapping[str, Any]
) -> dict[str, Any]:
    """All generation options in one place; none may be given twice."""
    beside = {name: value for name, value in beside.items() if value is not None}
    if twice := sorted(beside.keys() & (generate_kwargs or {}).keys()):
        raise UsageError(f"{', '.join(twice)}: given twice, in generate_kwargs and as an argument")
    options = {**(generate_kwargs or {}), **beside}
    if options.get("return_dict_in_generate"):
        raise UsageError("a pipeline does not support return_dict_in_generate; call model.generate")
    return options
