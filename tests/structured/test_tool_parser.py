"""Calls of tools are read the same however an answer is cut, in linear time, and never fail."""

import random
import time
from collections.abc import Iterator
from itertools import count

import pytest

import qwen25vl
from qwen25vl.processing.tokenizer import Tokenizer
from qwen25vl.structured.tool_events import (
    ArgumentsDelta,
    CallFinished,
    CallStarted,
    Event,
    TextDelta,
    collect,
)
from qwen25vl.structured.tool_parser import CLOSE, OPEN, ToolCallParser, read_answer


def parser(tokenizer: Tokenizer | None = None) -> ToolCallParser:
    numbers = count()
    return ToolCallParser(tokenizer, make_id=lambda: f"call_{next(numbers)}")


def joined(events: list[Event]) -> list[Event]:
    """Neighbouring deltas as one."""
    out: list[Event] = []
    for event in events:
        last = out[-1] if out else None
        if isinstance(event, TextDelta) and isinstance(last, TextDelta):
            out[-1] = TextDelta(last.text + event.text)
        elif isinstance(event, ArgumentsDelta) and isinstance(last, ArgumentsDelta):
            out[-1] = ArgumentsDelta(event.index, last.text + event.text)
        else:
            out.append(event)
    return out


def read(pieces: list[str]) -> list[Event]:
    one = parser()
    events = [event for piece in pieces for event in one.push(piece)]
    return joined([*events, *one.finish()])


def call(index: int, name: str, arguments: str, is_complete: bool = True) -> list[Event]:
    return [
        CallStarted(index, f"call_{index}", name),
        ArgumentsDelta(index, arguments),
        CallFinished(index, is_complete),
    ]


TWO = (
    'I look.\n<tool_call>\n{"name": "a", "arguments": {"x": "\\"} </tool_call>", "y": [1, {}]}}\n'
    '</tool_call>\n<tool_call>\n{"arguments": {"z": "<tool_call>"}, "name": "b"}\n</tool_call>\n'
)
ANSWERS: dict[str, list[Event]] = {
    TWO: [
        TextDelta("I look."),
        *call(0, "a", '{"x": "\\"} </tool_call>", "y": [1, {}]}'),
        *call(1, "b", '{"z": "<tool_call>"}'),
    ],
    "  plain text < 3 </tool_call> <tool \n": [TextDelta("  plain text < 3 </tool_call> <tool \n")],
    "<tool_call>\nhello</tool_call> x": [TextDelta("<tool_call>\nhello</tool_call> x")],
    '<tool_call>{"name": "f"}</tool_call>': call(0, "f", "{}"),
    '<tool_call>{"name": "f", "arguments": {}} no</tool_call>more': [
        *call(0, "f", "{}"),
        TextDelta("nomore"),
    ],
    '<tool_call>{"name": "f", "arguments": {"a": "b': call(0, "f", '{"a": "b', False),
    '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>': call(0, "f", '{"a": 1}', False),
    '<tool_call><tool_call>{"name":"f","arguments":{}}</tool_call>': [
        TextDelta("<tool_call>"),
        *call(0, "f", "{}"),
    ],
    '<tool_call>{"id": 1, "name": "f\\u00e9", "z": null, "arguments": {}, "w": [{"b":"}"}]}\n'
    "</tool_call>": call(0, "fé", "{}"),
    '<tool_call>{"name": "f", "arguments": {"a": ]}}</tool_call>': [
        *call(0, "f", '{"a": ', False),
        TextDelta("]}}"),
    ],
    '<tool_call>{"name": 3}</tool_call>': [TextDelta('<tool_call>{"name": 3}</tool_call>')],
    '<tool_call>{"name": ""}</tool_call>': [TextDelta('<tool_call>{"name": ""}</tool_call>')],
    '<tool_call>{"name": "f", "arguments": "x"}</tool_call>': [
        TextDelta('<tool_call>{"name": "f", "arguments": "x"}</tool_call>')
    ],
    '<tool_call>{"name": "f", "arguments": {}}</tool_call>\n\nDone. ': [
        *call(0, "f", "{}"),
        TextDelta("\n\nDone."),
    ],
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_read(answer: str) -> None:
    """Text, calls, and what is none: each came out as the other somewhere."""
    assert read([answer]) == ANSWERS[answer]


def pieces_of(text: str, chance: random.Random) -> Iterator[str]:
    place, longest = 0, chance.choice([1, 2, 5, 20])
    while place < len(text):
        size = chance.randint(0, longest)
        yield text[place : place + size]
        place += size


def test_cuts_change_nothing() -> None:
    """A tag, an escape or a name that two chunks share was not seen."""
    for seed in range(10_000 // len(ANSWERS) + 1):
        for answer, wanted in ANSWERS.items():
            pieces = list(pieces_of(answer, random.Random(seed)))
            assert read(pieces) == wanted, pieces


def test_any_text_is_read() -> None:
    """Whatever a model writes, nothing is raised, and joined pieces say what the whole says."""
    parts = [
        OPEN,
        CLOSE,
        '{"name": "f", ',
        '"arguments": {',
        "}",
        '"',
        "\\",
        ",",
        "]",
        "[",
        ":",
        "x",
    ]
    for seed in range(2_000):
        chance = random.Random(seed)
        text = "".join(chance.choices(parts, k=chance.randint(1, 30)))
        assert read(list(pieces_of(text, chance))) == read([text]), text


HOSTILE = [
    "<" * 10**6,
    " " * 10**6 + "x",
    OPEN * 90_000,
    "</tool_call" * 90_000,
    OPEN + " " * 10**6,
    '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 200_000,
    '<tool_call>{"name": "f", "arguments": {"a": "' + "\\" * 10**6,
    '<tool_call>{"name": "' + "n" * 10**6,
    '<tool_call>{"arguments": {"a": "' + '<tool_call>"' * 80_000,
]


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_a_megabyte_takes_a_second(text: str) -> None:
    """Buffers that are searched or joined again at every chunk made this quadratic."""
    started = time.process_time()
    read_answer(text)
    one = parser()
    for place in range(0, len(text), 1000):
        one.push(text[place : place + 1000])
    one.finish()
    assert time.process_time() - started < 6  # half a second alone, for both


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return qwen25vl.load().processor.tokenizer


def by_token(tokenizer: Tokenizer, ids: list[int]) -> list[Event]:
    one, decoder = parser(tokenizer), tokenizer.stream_decoder()
    events = [event for number in ids for event in one.push(decoder.push(number), number)]
    return joined([*events, *one.push(decoder.finish()), *one.finish()])


def test_tokens_are_tags_and_text_is_not(tokenizer: Tokenizer) -> None:
    """A model that quotes a tag in its own letters would call a tool."""
    one = '\n{"name": "f", "arguments": {"q": "</tool_call>"}}\n'
    opened, closed = tokenizer.control_ids[OPEN], tokenizer.control_ids[CLOSE]
    letters = tokenizer.encode(f"Write {OPEN}{one}{CLOSE}.", control=False)
    text = f"Write {OPEN}{one}{CLOSE}."
    assert by_token(tokenizer, letters) == [TextDelta(text)]
    ids = [*tokenizer.encode("Yes.\n"), opened, *tokenizer.encode_ordinary(one), closed]
    found = [TextDelta("Yes."), *call(0, "f", '{"q": "</tool_call>"}')]
    assert by_token(tokenizer, [*ids, tokenizer.eos_token_id]) == found
    assert by_token(tokenizer, [*ids[:-1], opened]) == [*found, TextDelta(OPEN)]


def test_tags_whose_text_comes_late(tokenizer: Tokenizer) -> None:
    """A stop string that begins like a tag holds its text back: it became part of the call. And a
    tokenizer that calls the tags special gives no text for them."""
    opened, closed = tokenizer.control_ids[OPEN], tokenizer.control_ids[CLOSE]
    body = '{"name": "f", "arguments": {}}'
    for chunks in (
        [("", opened), (OPEN + body, 5), (CLOSE, closed)],
        [("a", 4), ("", opened), ("<tool_", 5), ("call>" + body, 5), ("", closed)],
        [("a ", 4), ("", opened), (body, 5), ("", closed), ("", 1026)],
        [("a " + OPEN, opened), (body + CLOSE, closed)],
    ):
        one = parser(tokenizer)
        events = [event for text, token in chunks for event in one.push(text, token)]
        text, calls = collect([*events, *one.finish()])
        assert text in ("", "a")
        assert [(each.name, each.arguments, each.is_complete) for each in calls] == [
            ("f", "{}", True)
        ]


def test_ids_are_their_own() -> None:
    _, calls = collect(read_answer(TWO))
    assert len({each.id for each in calls}) == 2
    assert all(each.id.startswith("call_") and len(each.id) == 29 for each in calls)
