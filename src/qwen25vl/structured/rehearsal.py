"""The program that compiles grammars on trial, in a process of its own.

It reads JSON objects line by line, first the vocabulary, then a job at a time, and answers each
with one: whether the grammar compiles, and as what. Where a job takes too much time or memory, or a
bug of the compiler ends the process, the one that asked lives on. The file is run by itself (see
`trial`), so it imports nothing of this package.
"""

import json
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

LIMITS = {
    "initial_lexer_fuel": 1_000_000,  # about 20 ms
    "step_lexer_fuel": 200_000,  # of a token: about 14 ms
    "step_max_items": 50_000,
    "max_lexer_states": 25_000,  # of 1 to 2 kB
    "max_grammar_size": 200_000,
    "precompute_large_lexemes": False,
    "verbose_errors": False,  # they would tell one user's prompt in a log
}


class Bytes:
    """A vocabulary of single bytes, with the control tokens of the real one under their ids."""

    is_tokenizer_wrapper = True
    bos_token_id = None

    def __init__(self, controls: dict[str, int], end_token_id: int) -> None:
        size = 1 + max(255, *controls.values())
        self.tokens = [bytes([i]) if i < 256 else b"" for i in range(size)]
        for text, number in controls.items():
            self.tokens[number] = text.encode()
        self.special_token_ids = list(controls.values())
        self.eos_token_id = end_token_id

    def __call__(self, text: str | bytes) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def rehearse(vocabulary: Any, job: dict[str, Any]) -> dict[str, str]:
    """What became of a grammar: `error`, or `grammar` in the compiler's own form."""
    library: Any = import_module("llguidance")
    try:
        grammar = to_grammar(library, job["kind"], job["text"], job["options"])
    except RecursionError:
        return {"error": "it is nested too deep"}
    except Exception as error:  # the library raises nothing narrower
        return {"error": str(error)}
    limits = library.LLParserLimits(**LIMITS)
    matcher = library.LLMatcher(vocabulary, grammar, log_level=0, limits=limits)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        return {"error": matcher.get_error()}
    if matcher.is_stopped():
        return {"error": "it allows no answer but an empty one"}
    return {"grammar": grammar}


def to_grammar(library: Any, kind: str, text: str, options: dict[str, Any]) -> str:
    """A schema, a regular expression or a grammar in the compiler's own form."""
    if kind == "schema":
        return str(library.LLMatcher.grammar_from_json_schema(text, overrides=options))
    if kind == "regex":
        return str(library.LLMatcher.grammar_from_regex(text))
    to_lark = import_module("llguidance.gbnf_to_lark").any_to_lark
    return str(library.LLMatcher.grammar_from_lark(to_lark(text)))


def limit(max_bytes: int, max_seconds: int) -> None:
    """Let the process take no more than so much beside what it has, and compute no longer than so
    much from now, where the system can do so."""
    try:
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime) + 1 + max_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, resource.RLIM_INFINITY))
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        taken = pages * resource.getpagesize() + max_bytes
        resource.setrlimit(resource.RLIMIT_AS, (taken, resource.RLIM_INFINITY))
    except (ImportError, OSError, ValueError):
        return


def forbid_core_files() -> None:
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, OSError, ValueError):
        return


def main() -> None:
    forbid_core_files()
    setup = json.loads(sys.stdin.readline())
    sys.path[:] = setup["path"]
    library: Any = import_module("llguidance")
    vocabulary = library.LLTokenizer(Bytes(setup["controls"], setup["end_token_id"]))
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        limit(setup["max_bytes"], setup["max_seconds"])
        print(json.dumps(rehearse(vocabulary, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
