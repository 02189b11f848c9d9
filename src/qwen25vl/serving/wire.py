"""The requests of OpenAI's API as this server reads them, with the fields that its peers added.

A field that is null counts as not given. Unknown fields are ignored. A field that is known, changes
the answer and cannot be honoured is refused by name (see `refused`).
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Text = Annotated[str, Field(max_length=2_000_000)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
StopString = Annotated[str, Field(min_length=1, max_length=256)]
BadWord = Annotated[str, Field(max_length=256)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]
NgramSize = Annotated[int, Field(ge=0, le=1024)]


class Wire(BaseModel):
    """Numbers are numbers and texts are texts: nothing is converted."""

    model_config = ConfigDict(strict=True, extra="allow", protected_namespaces=())


class StreamOptions(Wire):
    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class ExtraArguments(Wire):
    """vLLM's arguments of processors that somebody adds to it; MinerU sends this one."""

    no_repeat_ngram_size: NgramSize | None = None


class SamplingFields(Wire):
    """What all requests for an answer may say about how its tokens are chosen and when it ends."""

    model: str | None = None
    max_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None
    seed: Seed | None = None
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[str, float], Field(max_length=1024)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    min_tokens: Annotated[int, Field(ge=0, le=2**31)] | None = None
    ignore_eos: bool | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=64)] | None = None
    allowed_token_ids: Annotated[list[TokenId], Field(min_length=1, max_length=4096)] | None = None
    bad_words: Annotated[list[BadWord], Field(max_length=256)] | None = None
    no_repeat_ngram_size: NgramSize | None = None
    vllm_xargs: ExtraArguments | None = None
    include_stop_str_in_output: bool | None = None
    skip_special_tokens: bool | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    return_progress: bool | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None
    prompt_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    user: str | None = None

    @property
    def num_prompt_likeliest(self) -> int | None:
        """How many likeliest tokens are asked for in the place of each token of the prompt; None
        where not even the log-probabilities of these are."""
        return self.prompt_logprobs


class ChatRequest(SamplingFields):
    """POST /v1/chat/completions"""

    messages: Annotated[list[dict[str, Any]], Field(min_length=1, max_length=4096)]
    max_completion_tokens: Annotated[int, Field(ge=1, le=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None
    tools: Annotated[list[dict[str, Any]], Field(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    media_io_kwargs: dict[str, Any] | None = None


class CompletionRequest(SamplingFields):
    """POST /v1/completions"""

    prompt: Text | list[TokenId] | list[Text] | list[list[TokenId]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: dict[str, Any] | None = None

    @property
    def num_prompt_likeliest(self) -> int | None:
        numbers = [self.prompt_logprobs, self.logprobs if self.echo else None]
        return max((each for each in numbers if each is not None), default=None)


REFUSED = (
    "adapter_path",
    "audio",
    "best_of",
    "chat_template",
    "custom_logit_processor",
    "documents",
    "dry_multiplier",
    "dynatemp_range",
    "echo",
    "frequency_penalty_range",
    "function_call",
    "functions",
    "length_penalty",
    "logits_processors",
    "lora_path",
    "max_new_tokens",
    "max_pixels",
    "min_pixels",
    "mirostat",
    "n_predict",
    "no_stop_trim",
    "prompt_embeds",
    "repeat_penalty",
    "resize_shape",
    "samplers",
    "stop_regex",
    "structural_tag",
    "suffix",
    "t_max_predict_ms",
    "top_n_sigma",
    "truncate_prompt_tokens",
    "typical_p",
    "use_beam_search",
    "web_search_options",
    "xtc_probability",
)
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (1,),
    "length_penalty": (1, 1.0),
    "typical_p": (1, 1.0),
    "mirostat": (0,),
    "dry_multiplier": (0, 0.0),
    "xtc_probability": (0, 0.0),
    "documents": ([],),
    "functions": ([],),
    "dynatemp_range": (0, 0.0),
    "logits_processors": ([],),
    "n_predict": (-1,),
    "repeat_penalty": (1, 1.0),
    "samplers": ([],),
    "stop_regex": ([],),
    "t_max_predict_ms": (0, -1),
    "top_n_sigma": (-1, -1.0, 0, 0.0),
}
LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
OTHER_LENGTHS = ("max_new_tokens", "n_predict")  # say nothing beside one of the former
INSTEAD = {
    "adapter_path": "name the adapter as the model",
    "chat_template": "send chat_template_kwargs",
    "documents": "send them as parts of the type file",
    "function_call": "send tool_choice",
    "functions": "send tools",
    "lora_path": "name the adapter as the model",
    "max_new_tokens": "send max_tokens",
    "max_pixels": "send it beside the picture or in mm_processor_kwargs",
    "min_pixels": "send it beside the picture or in mm_processor_kwargs",
    "n_predict": "send max_tokens",
    "no_stop_trim": "send include_stop_str_in_output",
    "repeat_penalty": "send repetition_penalty",
    "resize_shape": "send resized_height and resized_width beside the picture",
}


def refused(request: Wire) -> str | None:
    """The first field that would change the answer and that this server does not have."""
    extra = request.model_extra or {}
    has_length = any(getattr(request, name, None) is not None for name in LENGTHS)
    for name in REFUSED:
        if has_length and name in OTHER_LENGTHS:
            continue
        value = extra.get(name)
        if value not in (None, False, "") and value not in NEUTRAL.get(name, ()):
            return name
    modalities = extra.get("modalities")
    return "modalities" if isinstance(modalities, list) and "audio" in modalities else None
