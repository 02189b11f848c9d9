"""The checkpoint's own chat template: messages to a prompt in which typed text is told from the template's.

The Jinja template is rendered twice: as it is, which is the prompt's text, and with a unique stand-in for each text
that somebody typed. Cut at the stand-ins, the second shows the prompt piece by piece: what the template wrote, where
control tokens are control tokens, and what was typed, where they are letters. Together the pieces must spell the
first; a template that rewrites typed text (slices or escapes it) is refused: nothing could keep the two apart.

What surprises: white space around a typed text stays outside its stand-in, and a text of nothing else has none, so
that a template may trim texts and ask whether they are empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from functools import lru_cache, partial
from secrets import token_hex
from typing import Any

from jinja2 import Template, TemplateError, meta, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from qwen25vl.errors import CheckpointError, MessageError, OptionError, Qwen25VLError
from qwen25vl.processing.chat import Message
from qwen25vl.processing.tokenizer import Piece


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    add_vision_id: bool = False,
    continue_final_message: bool = False,
    tools: Sequence[Mapping[str, Any]] | None = None,
    special_tokens: Mapping[str, str] | None = None,
) -> list[Piece]:
    """Fill the template: pieces of text, each with whether its control tokens are control tokens.

    continue_final_message: leave out what the template puts after the last message, so that the answer continues it.
    tools: JSON schemas; like the template they are the program's words, not typed text. special_tokens: what the
    template may call eos_token and pad_token. Raises MessageError where messages and template do not fit, OptionError
    for tools that the template has no place for, CheckpointError for a template that is none.
    """
    compiled, names = compile_template(template)
    if tools and "tools" not in names:
        raise OptionError("tools are given, but this chat template has no place for them; pass another chat_template")
    mark = token_hex(8)
    end = f"\uf8f2{mark}\uf8f3" if continue_final_message else ""
    if continue_final_message:
        if add_generation_prompt:
            raise MessageError("continue_final_message and add_generation_prompt exclude each other")
        messages = [*messages[:-1], with_end(messages[-1], end)]
    typed: list[str] = []

    def stand_in(text: str) -> str:
        if not (core := text.strip()):
            return text
        start = text.index(core)
        typed.append(core)
        return f"{text[:start]}\uf8f0{mark}:{len(typed) - 1}\uf8f1{text[start + len(core) :]}"

    options = {"add_generation_prompt": add_generation_prompt, "add_vision_id": add_vision_id}
    given = {"tools": list(tools) if tools else None, "documents": None, "strftime_now": datetime.now().strftime}
    variables = {**(special_tokens or {}), **options, **given}
    plain = fill(compiled, show(messages, str), variables)
    marked = fill(compiled, show(messages, stand_in), variables)
    cut = re.split(f"\uf8f0{mark}:([0-9]+)\uf8f1", marked)
    pieces = [(typed[int(part)], False) if index % 2 else (part, True) for index, part in enumerate(cut)]
    if "".join(text for text, _ in pieces) != plain:
        raise MessageError("the chat template rewrites what was typed, so its control tokens can not be told apart")
    return [piece for piece in up_to(pieces, end) if piece[0]]


def with_end(message: Message, end: str) -> Message:
    """The message with a mark behind its last text."""
    if not message.parts or message.parts[-1].kind != "text":
        raise MessageError("continue_final_message needs a last message that ends with text")
    last = message.parts[-1]
    return replace(message, parts=(*message.parts[:-1], replace(last, text=last.text + end)))


def up_to(pieces: list[Piece], end: str) -> list[Piece]:
    if not end:
        return pieces
    for index, (text, _) in enumerate(pieces):
        if text.endswith(end):
            return [*pieces[:index], (text.removesuffix(end), False)]
    raise MessageError("continue_final_message needs a chat template that shows the last message")


def show(messages: Sequence[Message], write: Callable[[str], str]) -> list[dict[str, Any]]:
    """Messages as templates expect them; media without their content."""
    shown: list[dict[str, Any]] = []
    for message in messages:
        texts = [{"text": write(part.text)} if part.kind == "text" else {} for part in message.parts]
        parts = [{"type": part.kind, **text} for part, text in zip(message.parts, texts, strict=True)]
        shown.append({"role": message.role, "content": parts[0]["text"] if message.is_string else parts})
    return shown


def fill(compiled: Template, messages: list[dict[str, Any]], variables: Mapping[str, Any]) -> str:
    try:
        return compiled.render(messages=messages, **variables)
    except (Qwen25VLError, MemoryError):
        raise
    except Exception as error:  # a template is a program, and may fail in any way
        raise MessageError(f"the chat template fails on these messages: {error}") from error


@lru_cache(maxsize=8)
def compile_template(template: str) -> tuple[Template, frozenset[str]]:
    """A chat template, with what the ecosystem gives to one, and the names of the variables that it reads."""

    def raise_exception(message: str) -> None:
        raise MessageError(f"the chat template refuses these messages: {message}")

    extensions = ["jinja2.ext.loopcontrols", GenerationBlock]
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=extensions)
    environment.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    environment.globals["raise_exception"] = raise_exception
    try:
        names = meta.find_undeclared_variables(environment.parse(template))
        return environment.from_string(template), frozenset(names)
    except TemplateError as error:
        raise CheckpointError(f"the chat template can not be read: {error}") from None


class GenerationBlock(Extension):
    """{% generation %} … {% endgeneration %} marks the assistant's words for training; here it is its content."""

    tags = {"generation"}  # noqa: RUF012 - the shape that jinja2 wants

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)
