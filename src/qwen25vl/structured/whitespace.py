"""How JSON is written.

Between two of its parts there is nothing, one blank, or a line break with an indentation. The model
was trained on JSON in lines and in one line, and finds its own; a compact form, which it rarely
wrote, would make its answers worse. What it may write between two parts is bounded, so that it
cannot go on with white space for ever.
"""

from __future__ import annotations

from typing import Any

WHITESPACE = r"[ ]|\n[ \t]{0,40}"


def json_options(schema: str) -> dict[str, Any]:
    """Options of llguidance for a schema as JSON. The escape \\uXXXX is allowed only where the
    schema itself has a control character: every other character stands for itself."""
    escapes = 'nrbtf\\"'
    has_controls = "\\u00" in schema
    return {
        "whitespace_pattern": WHITESPACE,
        "json_allowed_escapes": escapes + "u" if has_controls else escapes,
    }
