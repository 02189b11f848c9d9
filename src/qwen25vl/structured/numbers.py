"""Numbers that end.

JSON allows any number of digits, and a model that is unsure of the next one goes on with them until
its answer is cut off (0.3333…). So a schema's numbers are made a little narrower than it says.
Whatever is written is valid under the schema as it was given.
"""

from __future__ import annotations

from typing import Any

LARGEST = 10**18
FRACTION = r"^[0-9T:-]+(\.[0-9]{1,6})?(Z|[+-][0-9:]+)$"
STEP = 1e-10  # a multiple of it has ten decimals at most, and is written without an exponent


def draw_in(made: dict[str, Any]) -> None:
    """Keep numbers within ±10¹⁸, where the schema allows larger ones or does not say."""
    stated = made.get("type", ())
    is_number = bool({"number", "integer"} & ({stated} if isinstance(stated, str) else set(stated)))
    lower, upper = ("minimum", "exclusiveMinimum"), ("maximum", "exclusiveMaximum")
    for keyword in lower:
        if keyword in made:
            made[keyword] = max(made[keyword], -LARGEST)
    for keyword in upper:
        if keyword in made:
            made[keyword] = min(made[keyword], LARGEST)
    if is_number and not made.keys() & set(lower):
        made["minimum"] = -LARGEST
    if is_number and not made.keys() & set(upper):
        made["maximum"] = LARGEST


def limit_decimals(made: dict[str, Any]) -> None:
    """Limit the decimals of a number, unless the schema is about very small ones."""
    stated = made.get("type", ())
    if "number" not in ([stated] if isinstance(stated, str) else stated) or "multipleOf" in made:
        return
    bounds = [made[name] for name in ("minimum", "exclusiveMinimum", "maximum", "exclusiveMaximum")
              if name in made]  # fmt: skip
    if all(bound == 0 or abs(bound) >= 10 * STEP for bound in bounds):
        made["multipleOf"] = STEP


def limit_fractions(made: dict[str, Any]) -> None:
    """Limit a second to its millionths, which is what programs keep of it; Z is a capital."""
    if made.get("format") in ("time", "date-time") and "pattern" not in made:
        made["pattern"] = FRACTION
