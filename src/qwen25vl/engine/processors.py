"""Changes to the scores of one answer that depend on the tokens before: of the options, and the
caller's own.

All follow one protocol, the ecosystem's: called with the tokens so far [1, n] and scores [1, V],
they return scores [1, V]. Each sees its own answer only, without padding, whatever else is written
at the same time. Without any, choosing a token costs nothing more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from typing import Any

import torch

from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import UsageError

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
AllowedTokens = Callable[[int, torch.Tensor], Iterable[int]]
"""Given the number of a prompt in its batch and the tokens so far [n], the ids that may follow."""

NEVER = float("-inf")


def list_functions(callables: Any) -> tuple[Callable[..., Any], ...]:
    """One callable, or a list of them, the ecosystem's lists too, as a tuple. Raises UsageError for
    what cannot be called."""
    if callables is None:
        return ()
    items = list(callables) if isinstance(callables, list | tuple) else [callables]
    for item in items:
        if not callable(item):
            raise UsageError(
                f"{type(item).__name__} is no function of (input_ids, scores); logits_processor "
                "and stopping_criteria take one, or a list of them"
            )
    return tuple(items)


def own_processors(
    options: GenerationConfig, num_prompt: int, max_tokens: int, allowed: Processor | None
) -> tuple[Processor, ...]:
    """Those that the options ask for. num_prompt: tokens that an answer begins with; max_tokens:
    the most that follow. allowed: made by `only_allowed`."""
    made: list[Processor] = []
    if options.no_repeat_ngram_size:
        made.append(no_repeated_ngrams(options.no_repeat_ngram_size))
    ends = {(end,) for end in options.eos_token_id}
    if words := [word for word in options.bad_words_ids if word not in ends]:
        made.append(no_bad_words(words))
    if allowed is not None:
        made.append(allowed)
    if options.forced_bos_token_id is not None:
        made.append(forced(1, [options.forced_bos_token_id]))
    if options.forced_eos_token_id:
        made.append(forced(num_prompt + max_tokens - 1, options.forced_eos_token_id))
    if options.suppress_tokens:
        made.append(without(options.suppress_tokens))
    if options.begin_suppress_tokens:
        is_forced = num_prompt <= 1 and options.forced_bos_token_id is not None
        made.append(without(options.begin_suppress_tokens, num_prompt + is_forced))
    return tuple(made)


def no_repeated_ngrams(size: int) -> Processor:
    """Excludes every token that would complete `size` tokens that are there already."""

    def process(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ids = input_ids[0].tolist()
        if len(ids) < size:
            return scores
        last = ids[len(ids) - size + 1 :]
        starts = range(len(ids) - size + 1)
        return exclude(scores, [ids[i + size - 1] for i in starts if ids[i : i + size - 1] == last])

    return process


def no_bad_words(words: Items[Items[int]]) -> Processor:
    """Excludes the last token of each row of tokens whose beginning was just written."""

    def process(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        ids = tuple(input_ids[0].tolist())
        ended = [
            word[-1]
            for word in words
            if len(word) <= len(ids) + 1 and ids[len(ids) - len(word) + 1 :] == tuple(word[:-1])
        ]
        return exclude(scores, ended)

    return process


def without(token_ids: Items[int], length: int | None = None) -> Processor:
    """Excludes tokens, always or where an answer has so many tokens, its prompt's included."""

    def process(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return exclude(scores, token_ids) if length in (None, input_ids.shape[1]) else scores

    return process


def forced(length: int, token_ids: Items[int]) -> Processor:
    """Leaves only these tokens, all equally likely, where an answer has so many tokens."""

    def process(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if input_ids.shape[1] != length:
            return scores
        check_ids(token_ids, scores)
        only = torch.full_like(scores, NEVER)
        only[:, list(token_ids)] = 0.0
        return only

    return process


def only_allowed(allowed: AllowedTokens, number: int) -> Processor:
    """Leaves the tokens that the caller's function names. Raises UsageError where it names none."""

    def process(input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        kept = [int(token) for token in allowed(number, input_ids[0]) or ()]
        if not kept:
            raise UsageError(
                f"prefix_allowed_tokens_fn allows no token after {input_ids.shape[1]} tokens"
            )
        check_ids(kept, scores)
        masked = torch.full_like(scores, NEVER)
        masked[:, kept] = scores[:, kept]
        return masked

    return process


def check_ids(token_ids: Items[int], scores: torch.Tensor) -> None:
    """Raise UsageError for ids that the vocabulary does not have."""
    size = scores.shape[1]
    if strange := [token for token in token_ids if not 0 <= token < size]:
        raise UsageError(f"token {strange[0]} is to be written; the vocabulary has {size} tokens")


def exclude(scores: torch.Tensor, token_ids: Items[int]) -> torch.Tensor:
    """−inf for tokens [1, V]; ids beyond the vocabulary exclude nothing."""
    fitting = [token for token in token_ids if token < scores.shape[1]]
    if not fitting:
        return scores
    index = torch.tensor(fitting, dtype=torch.int64, device=scores.device)
    return scores.index_fill(1, index, NEVER)


def process_row(
    processors: Items[Processor], ids: Items[int], scores: torch.Tensor
) -> torch.Tensor:
    """Scores [V] after all processors, in order. What a caller's function changes in place stays
    its own. Raises UsageError for a result that is no row of scores."""
    input_ids = torch.tensor([ids], dtype=torch.int64, device=scores.device)
    row = scores[None].clone()
    for processor in processors:
        row = processor(input_ids, row)
        if not isinstance(row, torch.Tensor) or row.shape != (1, len(scores)):
            got = list(row.shape) if isinstance(row, torch.Tensor) else type(row).__name__
            raise UsageError(
                f"a logits processor returned {got}; expected scores of shape [1, {len(scores)}]"
            )
    if bool(row.isnan().any()):
        raise UsageError("a logits processor returned scores that are not numbers (NaN)")
    if bool((row == NEVER).all()):
        raise UsageError(f"after {len(ids)} tokens every token is excluded; relax the constraints")
    return row[0].to(scores.dtype)
