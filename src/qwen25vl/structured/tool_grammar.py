"""The grammar of an answer that may call tools, in the form that the model was taught:

    I will look it up.
    <tool_call>
    {"name": "weather", "arguments": {"city": "Paris"}}
    </tool_call>

Both tags are control tokens; a tokenizer that has none spells them.
"""

from __future__ import annotations

import json
from typing import Any

from qwen25vl.processing.tokenizer import SPOKEN, Tokenizer
from qwen25vl.structured.whitespace import json_options

OPEN, CLOSE = "<tool_call>", "</tool_call>"
TEXT = "/(?s:.)+/"


def tool_grammar(text: str, tokenizer: Tokenizer, *, is_loose: bool = False) -> str:
    """The Lark grammar of a constraint's text. is_loose: whether arguments of tools that are not
    strict may be any object."""
    content = json.loads(text)
    controls = tokenizer.control_ids
    has_tags = {OPEN, CLOSE} <= controls.keys()
    rules = ["%llguidance {}", f"TEXT: {TEXT}"]
    spoken = [controls[each] for each in SPOKEN if each in controls and each not in (OPEN, CLOSE)]
    marks = " | " + token(spoken) if spoken else ""
    rules.append(f"free: (TEXT{marks})*")
    if content["mode"] == "none":
        return "\n".join(["start: free", *rules])
    several = "" if content["max_calls"] == 1 else ' ("\\n" call)*'
    rules.append(f"call: {token([controls[OPEN]]) if has_tags else json.dumps(OPEN)} rest")
    rules.append(
        f'rest: "\\n" body "\\n" {token([controls[CLOSE]]) if has_tags else json.dumps(CLOSE)}'
    )
    rules.append(f"body: %json {json.dumps(call_schema(content, is_loose))}")
    if content["mode"] == "required":
        start = f"start: call{several}"
    elif has_tags:
        start = f"start: free (call{several})?"
    else:
        rules.append(f"head[lazy]: /(?s:.)*/ {json.dumps(OPEN)}")
        start = f"start: free | head rest{several}"
    return "\n".join([start, *rules])


def token(ids: list[int]) -> str:
    return f"<[{','.join(map(str, ids))}]>"


def call_schema(content: dict[str, Any], is_loose: bool) -> dict[str, Any]:
    """The JSON between the tags."""
    calls = [
        {
            "type": "object",
            "properties": {
                "name": {"const": call["name"]},
                "arguments": {"type": "object"}
                if is_loose and not call["strict"]
                else call["arguments"],
            },
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        for call in content["calls"]
    ]
    options = json_options(json.dumps(content, ensure_ascii=False))
    return {"x-guidance": options, "anyOf": calls, "$defs": content["definitions"]}
