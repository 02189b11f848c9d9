"""The fields of a request as options of the engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qwen25vl.engine.additions import Additions
from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.wire import INSTEAD, ChatRequest, SamplingFields, refused

if TYPE_CHECKING:
    import torch

    from qwen25vl.ecosystem.conditional_generation import Qwen2_5_VLForConditionalGeneration
    from qwen25vl.engine.constraint import StartConstraint
    from qwen25vl.engine.options import GenerationConfig
    from qwen25vl.engine.processors import AllowedTokens, Processor
    from qwen25vl.processing.tokenizer import Tokenizer

GREEDY = 1e-5  # temperatures up to this take the likeliest token
SAME_NAME = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty",
    "frequency_penalty", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Bounds:
    """What the server allows: tokens of a prompt with its answer, of an answer whose length is not
    given, and answers of a request."""

    max_model_len: int
    default_max_tokens: int
    max_answers: int


def check_supported(request: SamplingFields) -> None:
    """Raise ApiError for fields that this server does not have, or not together."""
    if name := refused(request):
        instead = f"; {INSTEAD[name]}" if name in INSTEAD else ""
        message = f"{name} is not supported by this server{instead}."
        raise ApiError(400, message, param=name, code="unsupported_value")
    if request.stream and request.prompt_logprobs is not None:
        raise refuse("prompt_logprobs", "it excludes stream")


def read_options(
    request: SamplingFields,
    num_prompt: int,
    bounds: Bounds,
    model: Qwen2_5_VLForConditionalGeneration,
    tokenizer: Tokenizer,
) -> GenerationConfig:
    """The options of an answer: the request's over the checkpoint's. A length that is not given, or
    that the context has no room for, is what there is room for."""
    num_answers = request.n or 1
    if num_answers > bounds.max_answers:
        raise refuse("n", f"{num_answers} answers are asked for, at most {bounds.max_answers}")
    check_ids(request, len(model.get_input_embeddings().weight))
    options: dict[str, Any] = {name: getattr(request, name) for name in SAME_NAME}
    options = {name: value for name, value in options.items() if value is not None}
    options |= read_choice(request, options)
    if request.seed is not None:
        options["seed"] = request.seed % 2**63  # the engine's keys are not negative
    options["num_return_sequences"] = num_answers
    options["max_new_tokens"] = find_length(request, num_prompt, bounds)
    options["min_new_tokens"] = min(request.min_tokens or 0, options["max_new_tokens"])
    if request.stop:
        options["stop_strings"] = [request.stop] if isinstance(request.stop, str) else request.stop
    if request.bad_words:
        options["bad_words_ids"] = spell_words(request.bad_words, tokenizer) or None
    extra = request.vllm_xargs
    ngram_size = request.no_repeat_ngram_size or (extra and extra.no_repeat_ngram_size)
    if ngram_size:
        options["no_repeat_ngram_size"] = ngram_size
    base = model.resolve_generation(None, options)
    if request.ignore_eos:
        return base.merge(eos_token_id=request.stop_token_ids or -1)
    if request.stop_token_ids:
        return base.merge(eos_token_id=[*base.eos_token_id, *request.stop_token_ids])
    return base


def read_choice(request: SamplingFields, options: dict[str, Any]) -> dict[str, Any]:
    """Whether tokens are drawn. A temperature that is given decides, also where it is 1, which the
    engine's options alone would take for none."""
    if request.top_p == 0:  # some clients mean greedy
        options.pop("top_p")
        return {"do_sample": False}
    found: dict[str, Any] = {}
    if request.top_k is not None:
        found["top_k"] = max(0, request.top_k)
    if request.temperature is not None:
        found["do_sample"] = request.temperature > GREEDY
    return found


def find_length(request: SamplingFields, num_prompt: int, bounds: Bounds) -> int:
    """The most tokens of an answer. Raises ApiError for a prompt that leaves no room."""
    room = bounds.max_model_len - num_prompt
    if room < 1:
        name = "messages" if isinstance(request, ChatRequest) else "prompt"
        raise ApiError(
            400,
            f"This model's maximum context length is {bounds.max_model_len} tokens. However, your "
            f"{name} resulted in {num_prompt} tokens. Please reduce the length of the {name}"
            f"{', or send smaller pictures' if name == 'messages' else ''}.",
            param=name,
            code="context_length_exceeded",
        )
    wanted = request.max_completion_tokens if isinstance(request, ChatRequest) else None
    wanted = request.max_tokens if wanted is None else wanted
    return min(bounds.default_max_tokens if wanted is None else wanted, room)


def check_ids(request: SamplingFields, vocab_size: int) -> None:
    """Raise ApiError for token ids that the vocabulary does not have."""
    for name in ("stop_token_ids", "allowed_token_ids"):
        for token in getattr(request, name) or ():
            if token >= vocab_size:
                raise refuse(name, f"token {token} is not among the {vocab_size} of the model")
    for text, bias in (request.logit_bias or {}).items():
        if not is_token(text, vocab_size):
            raise refuse("logit_bias", f"{text[:20]!r} is none of the model's {vocab_size} tokens")
        if not -100 <= bias <= 100:
            raise refuse("logit_bias", f"{bias} is not between -100 and 100")


def is_token(text: str, vocab_size: int) -> bool:
    """Whether a text is a token's number, in its only spelling: "5" and "05" would add up."""
    is_number = text.isascii() and text.isdigit() and len(text) <= len(str(vocab_size))
    return is_number and text == str(int(text)) and int(text) < vocab_size


def spell_words(words: Iterable[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Each word as tokens, at the beginning of a text and after a blank."""
    spelt = [tokenizer.encode(text) for word in words if word for text in (word, f" {word}")]
    return [ids for ids in spelt if ids]


def read_additions(request: SamplingFields, start: StartConstraint | None = None) -> Additions:
    """What else decides about tokens: biases, those that are allowed, a grammar."""
    processors = (bias_of(request.logit_bias),) if request.logit_bias else ()
    allowed = None
    if request.allowed_token_ids:
        allowed = always(request.allowed_token_ids)
    return Additions(processors=processors, allowed=allowed, constraint=start)


def always(ids: list[int]) -> AllowedTokens:
    return lambda _number, _ids: ids


def bias_of(biases: dict[str, float]) -> Processor:
    """Adds a number to the scores of some tokens."""
    import torch

    ids = torch.tensor([int(token) for token in biases], dtype=torch.int64, device="cpu")
    values = torch.tensor(list(biases.values()), dtype=torch.float32, device="cpu")

    def process(_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.index_add(1, ids.to(scores.device), values.to(scores.device)[None])

    return process


def refuse(name: str, message: str) -> ApiError:
    return ApiError(400, f"{name}: {message}.", param=name, code="invalid_value")
