"""From a constraint to a grammar for one tokenizer: tried out, compiled, kept for the next time."""

from __future__ import annotations

import json
from collections import OrderedDict
from threading import Lock

from qwen25vl.errors import SchemaError
from qwen25vl.processing.tokenizer import Tokenizer
from qwen25vl.structured.constraints import Constraint, Kind
from qwen25vl.structured.grammar import Grammar
from qwen25vl.structured.rehearsal import LIMITS
from qwen25vl.structured.tool_grammar import tool_grammar
from qwen25vl.structured.trial import Trial, refusal
from qwen25vl.structured.vocabulary import Vocabulary, require_llguidance

CACHE_BYTES = 64 * 2**20
ENTRY_BYTES = 64 * 2**10  # of a small grammar
BYTES_PER_LETTER = 100  # of what is compiled; schemas take a third of this


class GrammarCompiler:
    """Any thread may ask it, and waits until its grammar is there: some milliseconds for one that
    is kept, a tenth of a second for most others, and a second at most. What was refused is kept
    too. cache_bytes: for both."""

    def __init__(self, tokenizer: Tokenizer, cache_bytes: int = CACHE_BYTES) -> None:
        """Raises DependencyError where llguidance is missing."""
        require_llguidance()
        self.tokenizer, self.cache_bytes = tokenizer, cache_bytes
        self.read_vocabulary: Vocabulary | None = None
        self.reading = Lock()
        self.kept: OrderedDict[Constraint, Grammar | str] = OrderedDict()
        self.num_bytes = 0
        self.lock = Lock()
        self.trial = Trial(tokenizer)

    def __reduce__(self) -> tuple[type[GrammarCompiler], tuple[Tokenizer, int]]:
        """A copy compiles anew."""
        return GrammarCompiler, (self.tokenizer, self.cache_bytes)

    @property
    def vocabulary(self) -> Vocabulary:
        """Read once, which takes a second for 152 thousand tokens: a server asks for it before its
        first request."""
        with self.reading:
            if self.read_vocabulary is None:
                self.read_vocabulary = Vocabulary(self.tokenizer)
            return self.read_vocabulary

    def compile(self, constraint: Constraint) -> Grammar:
        """Raises SchemaError for what cannot be compiled within the limits."""
        with self.lock:
            found = self.kept.get(constraint)
            if found is not None:
                self.kept.move_to_end(constraint)
        if found is None:
            found = self.find_new(constraint)
            self.keep(constraint, found)
        if isinstance(found, str):
            raise SchemaError(found)
        return found

    def find_new(self, constraint: Constraint) -> Grammar | str:
        """A grammar, or why there is none. Arguments of tools that are not strict may be any object
        where their schema does not compile."""
        tokenizer = self.tokenizer
        try:
            return self.compile_text(constraint, text_for(constraint, tokenizer))
        except SchemaError as error:
            why = str(error)
        if constraint.kind != "tools":
            return why
        try:
            loose = tool_grammar(constraint.text, tokenizer, is_loose=True)
            return self.compile_text(constraint, loose)
        except SchemaError:
            return why

    def compile_text(self, constraint: Constraint, text: str) -> Grammar:
        llguidance = require_llguidance()
        kind: Kind = "grammar" if constraint.kind in ("choice", "tools") else constraint.kind
        grammar = self.trial.compile(kind, text)
        limits = llguidance.LLParserLimits(**LIMITS)
        matcher = llguidance.LLMatcher(
            self.vocabulary.compiled, grammar, log_level=0, limits=limits
        )
        matcher.compute_bitmask()  # of the first token, for all answers
        if matcher.is_error():
            raise refusal(constraint.kind, matcher.get_error())
        return Grammar(matcher, self.vocabulary, ENTRY_BYTES + BYTES_PER_LETTER * len(grammar))

    def keep(self, constraint: Constraint, found: Grammar | str) -> None:
        """Keep a result, and drop the ones that were asked for longest ago."""
        with self.lock:
            if constraint not in self.kept:
                self.kept[constraint] = found
                self.num_bytes += size_of(constraint, found)
            while self.num_bytes > self.cache_bytes:
                self.num_bytes -= size_of(*self.kept.popitem(last=False))


def size_of(constraint: Constraint, found: Grammar | str) -> int:
    size = found.num_bytes if isinstance(found, Grammar) else len(found)
    return size + len(constraint.text)


def text_for(constraint: Constraint, tokenizer: Tokenizer) -> str:
    """What is compiled of a constraint; calls of tools are written with this tokenizer's tokens."""
    if constraint.kind == "tools":
        return tool_grammar(constraint.text, tokenizer)
    if constraint.kind == "choice":
        choices = " | ".join(json.dumps(each) for each in json.loads(constraint.text))
        return f"start: ANSWER\nANSWER: {choices}\n"
    return constraint.text
