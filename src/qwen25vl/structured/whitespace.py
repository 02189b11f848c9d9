"""How JSON is written: in one line, with or without a blank after a comma or colon.

The model was taught calls of tools in this form, {"name": "f", "arguments": {"a": 1}}, and chooses
the blanks itself. White space anywhere, which JSON allows, would be worse: lines and indentation
are a third of an answer's tokens, and a model that is unsure goes on with them for ever.
"""

from __future__ import annotations

from typing import Any


def json_options(schema: str) -> dict[str, Any]:
    """Options of llguidance for a schema as JSON. The escape \\uXXXX is allowed only where the
    schema itself has a control character: every other character stands for itself."""
    escapes = 'nrbtf\\"'
    has_controls = "\\u00" in schema
    return {
        "whitespace_flexible": False,
        "item_separator": ",[ ]?",
        "key_separator": ":[ ]?",
        "json_allowed_escapes": escapes + "u" if has_controls else escapes,
    }
