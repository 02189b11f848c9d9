"""Damaged files made of whole ones: JSON whose values are of another kind, size or depth, files
with other bytes, and safetensors files with another header."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from typing import Any

Place = tuple[Any, ...]
MARK = "@mutant@"
DEEP = 100_000
# as JSON spells them: other kinds, numbers at and beyond limits, text that is none, depth
WRONG = [
    *"null true false 0 -1 1 2 255 65537 0.5 -0.0 1e-320 1e308 1e999 -1e999".split(),
    *"NaN Infinity -Infinity [] {} [[]] [null] [0] [-1] [1e999] [true] [{}]".split(),
    *map(str, (2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63, -(2**63), 2**64 + 1)),
    *(json.dumps(text) for text in ("", " ", "x", "-1", "0", "nan", "1e999", "１２", "\0")),
    *(json.dumps(text) for text in ("\ufeff", "\ud800", "a/b", "..", "/etc/passwd")),
    *(json.dumps(text) for text in ("~nobody", "a\nb", "(a+)+$", "(", "x" * 5000, "9" * 5000)),
    "9" * 400, "9" * 5000, "[1, 2, 3]", '["x"]', '["x", ["y", {}]]', f"[{'1,' * 3000}1]",
    '{"": null}', '{"x": 1}', '{"0": "x"}', '{"x": {"x": []}}', '{"content": 1, "id": "x"}',
    *("[" * depth + "]" * depth for depth in (20, 90, 400, 900, DEEP)),
    *('{"a":' * depth + "1" + "}" * depth for depth in (20, 90, 400, 900, DEEP)),
    "[" * DEEP,
]  # fmt: skip
PIECES = [
    *(b"\0", b"\xff", b"\xc3", b"\xef\xbb\xbf", "é".encode(), "\U0001f600".encode()),
    *(b"{", b"}", b"[", b"]", b'"', b"'", b",", b":", b"\\", b"\\ud800", b"\\u12", b" ", b"\n"),
    *(b"\r\n", b"-", b"e999", b"NaN", b"null", b"//", b"#version", b"9" * 30, b"{{", b"{%", b"%}"),
]
TYPES = "F64 F32 F16 BF16 I8 U8 I32 I64 BOOL F8_E4M3 F4 x".split()


def places(value: Any, path: Place = ()) -> list[Place]:
    """Where a JSON value has parts, itself first."""
    parts: Any = value.items() if isinstance(value, dict) else ()
    parts = enumerate(value) if isinstance(value, list) else parts
    return [path, *(place for key, part in parts for place in places(part, (*path, key)))]


def part_at(value: Any, path: Place) -> Any:
    for key in path:
        value = value[key]
    return value


def json_mutants(
    content: bytes, seed: int, count: int, within: Place = (), *, ratio: float = 0.75
) -> Iterator[bytes]:
    """Files like one of JSON. within: the part that is changed; ratio: how many of them are whole
    JSON with another value, and not the file with other bytes."""
    rng = random.Random(seed)
    for _ in range(count):
        if rng.random() < ratio:
            yield changed_value(content, rng, within)
        else:
            yield changed_bytes(content, rng)


def byte_mutants(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    rng = random.Random(seed)
    return (changed_bytes(content, rng) for _ in range(count))


def changed_value(content: bytes, rng: random.Random, within: Place = ()) -> bytes:
    """One or two parts replaced, left out, renamed, given twice, exchanged or wrapped."""
    whole = json.loads(content)
    for _ in range(rng.choice((1, 1, 1, 2))):
        value = part_at(whole, within)
        found = places(value)
        # each depth as often: a vocabulary has thousands of parts, and one at its top
        depth = rng.choice([*{len(place) for place in found if place}] or [0])
        place = rng.choice([place for place in found if len(place) == depth])
        if not place:
            return rng.choice(WRONG).encode("utf-8", "surrogatepass")
        change_part(part_at(value, place[:-1]), place[-1], rng)
    text = json.dumps(whole)
    while f'"{MARK}"' in text:
        text = text.replace(f'"{MARK}"', rng.choice(WRONG), 1)
    return text.encode("utf-8", "surrogatepass")


def change_part(parent: Any, key: Any, rng: random.Random) -> None:
    kind, old = rng.randrange(8), parent[key]
    if kind == 0:
        del parent[key]
    elif kind == 1:
        parent[key] = rng.choice(nearly(old))
    elif kind == 2 and isinstance(parent, dict):
        parent[rng.choice([f"{key}x", "", str(key).upper(), "x\0"])] = parent.pop(key)
    elif kind == 3 and len(parent) > 1:
        other = rng.choice(list(parent) if isinstance(parent, dict) else range(len(parent)))
        parent[key], parent[other] = parent[other], old
    elif kind == 4 and isinstance(parent, dict):
        parent[rng.choice(["x", "", "__class__", "self", "check", "to_dict"])] = MARK
    elif kind == 4:
        parent.insert(key, old)
    else:
        parent[key] = MARK


def nearly(old: Any) -> list[Any]:
    """Values that may be taken for another one."""
    if isinstance(old, int | float):
        return [old + 1, old - 1, old * 2, -old, old / 2, float(old), str(old), [old]]
    if isinstance(old, str):
        return [old + "x", old[1:], old.upper(), [old], old * 2, {"content": old}]
    parts = list(old or ())
    return [[old], {"x": old}, parts * 2, parts[1:], parts[::-1]]


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Bytes changed, put in, taken out, repeated, cut off; another encoding; nothing at all."""
    made = bytearray(content)
    for _ in range(rng.randint(1, 3)):
        place = rng.randrange(len(made) or 1)
        kind = rng.randrange(7)
        if kind == 0 and made:
            made[place] = rng.randrange(256)
        elif kind in (1, 2):
            made[place:place] = rng.choice(PIECES)
        elif kind == 3:
            del made[place : place + rng.randint(1, 40)]
        elif kind == 4:
            other = rng.randrange(len(made) or 1)
            made[place:place] = made[other : other + rng.randint(1, 60)]
        elif kind == 5:
            return bytes(made[:place])
        elif rng.random() < 0.1:
            text = made.decode("utf-8", "replace")
            return rng.choice([b"", text.encode("utf-16"), b"\xef\xbb\xbf" + made, made + made])
    return bytes(made)


def header_mutants(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    """Safetensors files like one, whose header is whole but says something else, or is damaged."""
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    rng = random.Random(seed)
    for made in json_mutants(header, seed, count, ratio=0.8):
        changed = other_entries(header, rng) if rng.random() < 0.3 else made
        padded = changed + b" " * (-len(changed) % 8)
        sizes = [len(padded)] * 200 + [0, 1, len(padded) + 8, 2**40, 2**63, 2**64 - 1]
        yield rng.choice(sizes).to_bytes(8, "little") + padded + rest


def other_entries(header: bytes, rng: random.Random) -> bytes:
    """A header that is whole, and describes other tensors."""
    entries = json.loads(header)
    entries.pop("__metadata__", None)
    for _ in range(rng.choice((1, 1, 2, 5))):
        one, other = (rng.choice(list(entries)) for _ in range(2))
        entry, shape = entries[one], entries[one]["shape"]
        shapes = [shape[::-1], [1, *shape], [], [0, 2**62], [*shape[1:], -1], shape[1:]]
        kind = rng.randrange(5)
        if kind == 0:
            entry["dtype"] = rng.choice(TYPES)
        elif kind == 1:
            entry["shape"] = rng.choice(shapes)
        elif kind == 2:
            entry["data_offsets"] = entries[other]["data_offsets"]
        elif kind == 3:
            entries[one], entries[other] = entries[other], entry
        else:
            before = rng.choice(["module.", "x.", "model.", ""])
            entries[before + one + rng.choice(["", "x"])] = entries.pop(one)
    return json.dumps(entries).encode()
