"""The checkpoint's own chat template:
messages to a prompt in which typed text is told from the template's.

The Jinja template is rendered twice: as it is, which is the prompt's text, and with a pair of
unique marks around each text of a message. Cut at the marks, the second shows the prompt piece by
piece: what the template wrote, where control tokens are control tokens, and what was typed, where
they are letters. Without the marks it must spell the first; a template that rewrites typed text
(slices it, or asks what it begins with) is refused: nothing could keep the two apart.

What surprises:
* White space around a typed text stays outside its marks, and a text of nothing else has none, so
  that a template may trim texts and ask whether they are empty.
* In an assistant's and a system message *spoken* control tokens (see `tokenizer`) stay control
  tokens. No other role has them: a user or the result of a tool cannot write one, and neither can
  the description of a tool, which may come from anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime
from secrets import token_hex
from typing import Any

from jinja2 import Template

from qwen25vl.errors import MessageError, OptionError, Qwen25VLError
from qwen25vl.processing.clients import ToolCall, present
from qwen25vl.processing.messages import Message, Part
from qwen25vl.processing.template_language import compile_template
from qwen25vl.processing.tokenizer import Piece, one_of

SPEAKING_ROLES = ("assistant", "system")
Write = Callable[[str, bool], str]
"""Shows a text, told whether the role that it stands in speaks control tokens."""


class Marks:
    """A pair of marks that nobody can guess, and the end mark of a continued message."""

    def __init__(self) -> None:
        secret = token_hex(8)
        marks = [f"\uf8f0{secret}{kind}\uf8f1" for kind in "stce"]
        self.speaking, self.typed, self.close, self.end = marks
        self.pattern = re.compile(f"({self.speaking}|{self.typed})(.*?){self.close}", re.DOTALL)

    def wrap(self, text: str, speaks: bool) -> str:
        """The text with marks around it; white space at its ends stays outside."""
        if not (core := text.strip()):
            return text
        start = text.index(core)
        opening = self.speaking if speaks else self.typed
        return f"{text[:start]}{opening}{core}{self.close}{text[start + len(core) :]}"

    def cut(self, marked: str, spoken: re.Pattern[str]) -> list[Piece]:
        """The pieces of a prompt; what stands between no marks is the template's."""
        pieces: list[Piece] = []
        place = 0
        for found in self.pattern.finditer(marked):
            pieces.append((marked[place : found.start()], True))
            opening, text = found.groups()
            if opening == self.typed:
                pieces.append((text, False))
            else:  # the odd ones are what the pattern captured
                pieces += [(part, index % 2 == 1) for index, part in enumerate(spoken.split(text))]
            place = found.end()
        pieces.append((marked[place:], True))
        return [piece for piece in pieces if piece[0]]


def render(
    template: str,
    messages: Sequence[Message],
    *,
    add_generation_prompt: bool = False,
    add_vision_id: bool = False,
    continue_final_message: bool = False,
    tools: Sequence[Any] | None = None,
    variables: Mapping[str, Any] | None = None,
    special_tokens: Mapping[str, str] | None = None,
    spoken: Collection[str] = (),
    structure: Collection[str] = (),
) -> list[Piece]:
    """Fill the template: pieces of text, each with whether its control tokens are control tokens.

    continue_final_message: leave out what the template puts after the last message, so that the
    answer continues it. As in transformers white space at its end is kept, unless the template
    trims texts. tools: JSON schemas, which the template shows to the model; all in them is letters.
    variables: further ones of the template, in which tokens of `structure` are letters.
    special_tokens: what the template may call eos_token and pad_token. spoken: the control tokens
    that stay so in texts of the assistant and the system.

    Raises MessageError where messages and template do not fit, OptionError for tools that the
    template has no place for, CheckpointError for a template that is none.
    """
    compiled, names = compile_template(template)
    if tools and "tools" not in names:
        raise OptionError(
            "tools are given, but this chat template does not use them; pass another chat_template"
        )
    if continue_final_message:
        check_continuation(messages[-1], add_generation_prompt)
    marks = Marks()
    # The blank after the end mark shows whether the template trims texts.
    end = f"{marks.end} " if continue_final_message else ""
    options = {"add_generation_prompt": add_generation_prompt, "add_vision_id": add_vision_id}
    given = {"documents": None, "strftime_now": datetime.now().strftime}
    known = {**(special_tokens or {}), **options, **given}
    has_calls = "tool_calls" in template

    pattern, controls = one_of(structure), one_of([*structure, *spoken])

    def fill(write: Write) -> str:
        shown = [show(message, write, has_calls, "") for message in messages[:-1]]
        shown.append(show(messages[-1], write, has_calls, end))
        for each, message in zip(shown, messages, strict=True):
            each.update(show_further(message, write, controls))
        schemas = [guard(tool, as_letters(write), controls) for tool in tools or ()] or None
        own = {name: guard(value, write, pattern) for name, value in (variables or {}).items()}
        text = fill_in(compiled, {**known, **own, "messages": shown, "tools": schemas})
        return before_end(text, marks.end) if end else text

    plain, marked = fill(lambda text, _: text), fill(marks.wrap)
    pieces = marks.cut(marked, one_of(spoken))
    if "".join(text for text, _ in pieces) != plain:
        raise MessageError(
            "the chat template rewrites typed text, so control tokens in it cannot be told apart"
        )
    return pieces


def check_continuation(last: Message, add_generation_prompt: bool) -> None:
    """Raise MessageError unless the last message can be continued."""
    if add_generation_prompt:
        raise MessageError("continue_final_message and add_generation_prompt exclude each other")
    if not ends_with_text(last):
        raise MessageError("continue_final_message needs a last message that ends with text")


def ends_with_text(message: Message) -> bool:
    """Whether there is something to continue; an assistant's empty list is an empty text."""
    return message.parts[-1].kind == "text" if message.parts else message.role == "assistant"


def before_end(text: str, end: str) -> str:
    """The prompt up to the end of the message that is continued."""
    place = text.rfind(end)
    if place < 0:
        wanted = "a chat template that shows the last message"
        raise MessageError(f"continue_final_message needs {wanted}")
    is_trimmed = not text.startswith(" ", place + len(end))
    return text[:place].rstrip() if is_trimmed else text[:place]


def show(message: Message, write: Write, has_calls: bool, end: str) -> dict[str, Any]:
    """A message as templates expect it; media without their content.

    has_calls: whether the template writes the calls of tools itself. Else, and where the message is
    continued, they follow the assistant's words in the form that the model writes. end: what marks
    the end of a continued message.
    """
    speaks = message.role in SPEAKING_ROLES
    parts = [show_part(part, write, speaks) for part in message.parts]
    shown: dict[str, Any] = {"role": message.role}
    if message.tool_calls and has_calls and not end:
        shown["tool_calls"] = [show_call(call, write) for call in message.tool_calls]
    elif message.tool_calls:
        calls = "\n".join(spell_call(call, write) for call in message.tool_calls)
        if not parts or "text" not in parts[-1]:
            parts.append({"type": "text", "text": ""})
        parts[-1]["text"] += f"\n{calls}" if parts[-1]["text"] else calls
    if end and not parts:  # an empty list is an empty text
        parts.append({"type": "text", "text": ""})
    if end:
        parts[-1]["text"] += end
    shown["content"] = parts[0]["text"] if message.is_string else parts
    return shown


def show_further(message: Message, write: Write, controls: re.Pattern[str]) -> dict[str, Any]:
    """Other keys of a message, for templates that ask for them; no token of `controls` in them is a
    control token."""
    if not message.further:
        return {}
    found: dict[str, Any] = guard(message.further, as_letters(write), controls)
    return found


def as_letters(write: Write) -> Write:
    """Writes texts in which not even spoken tokens are control tokens."""
    return lambda text, _: write(text, False)


def show_part(part: Part, write: Write, speaks: bool) -> dict[str, Any]:
    if part.kind != "text":
        return {"type": part.kind}
    return {"type": "text", "text": write(part.text, speaks)}


def spell_call(call: ToolCall, write: Write) -> str:
    """A call in the model's own form; what stands in it is letters."""
    lines = write("<tool_call>", True), write(call.as_json(), False), write("</tool_call>", True)
    return "\n".join(lines)


def show_call(call: ToolCall, write: Write) -> dict[str, Any]:
    """A call as templates expect it."""

    def mark(value: Any) -> Any:
        if isinstance(value, str):
            return write(value, False)
        if isinstance(value, Mapping):
            return {mark(key): mark(each) for key, each in value.items()}
        return [mark(each) for each in value] if isinstance(value, list | tuple) else value

    function = {"name": write(call.name, False), "arguments": mark(call.arguments)}
    return {"type": "function", "function": function}


def guard(value: Any, write: Write, structure: re.Pattern[str]) -> Any:
    """A tool's schema, or any value, with marks around the texts that spell such a token."""
    if isinstance(value, str):
        return write(value, True) if structure.search(value) else value
    if isinstance(value, list | tuple):
        return [guard(each, write, structure) for each in value]
    if isinstance(value, Mapping):
        keys = [guard(key, write, structure) for key in value]
        values = [guard(each, write, structure) for each in value.values()]
        return dict(zip(keys, values, strict=True))
    described = present(value)  # a tool may be described by an object
    return value if described is None else guard(described, write, structure)


def fill_in(compiled: Template, variables: Mapping[str, Any]) -> str:
    try:
        return compiled.render(**variables)
    except (Qwen25VLError, MemoryError):
        raise
    except Exception as error:  # a template is a program, and may fail in any way
        raise MessageError(f"the chat template fails on these messages: {error}") from error
