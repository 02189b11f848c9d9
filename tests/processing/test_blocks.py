"""Texts of enums, items of thoughts, and content blocks of Anthropic, LangChain and MCP."""

import enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import CHAT_TEMPLATE

from qwen25vl import AutoProcessor
from qwen25vl.errors import MessageError
from qwen25vl.processing.clients import ToolCall
from qwen25vl.processing.messages import Message, Part, ends_with_answer, read_messages
from qwen25vl.processing.prompt_media import check_texts
from qwen25vl.processing.template import render

USER = {"role": "user", "content": "hi"}
ANSWER = {"role": "assistant", "content": "yo"}


class Word(str, enum.Enum):  # noqa: UP042 - whose str() is the name of the member
    USER = "user"
    ROLE = "assistant"
    HELLO = "hello"
    TEXT = "text"


class Loud(str):
    def __str__(self) -> str:
        return "OTHER"


def prompt(messages: Any, **options: Any) -> str:
    return "".join(text for text, _ in render(CHAT_TEMPLATE, read_messages(messages), **options))


@pytest.mark.parametrize(
    ("given", "plain"),
    [
        ([{"role": Word.USER, "content": "a"}], [{"role": "user", "content": "a"}]),
        ([{"role": Loud("user"), "content": Word.HELLO}], [{"role": "user", "content": "hello"}]),
        ([{"role": "user", "content": [Word.HELLO]}], [{"role": "user", "content": ["hello"]}]),
        (
            [{"role": "user", "content": [{"type": Word.TEXT, "text": Loud("a")}]}],
            [{"role": "user", "content": ["a"]}],
        ),
        (
            [
                USER,
                {
                    "role": Word.ROLE,
                    "tool_calls": [{"name": Loud("f"), "arguments": {Word.USER: Word.HELLO}}],
                },
            ],
            [
                USER,
                {
                    "role": "assistant",
                    "tool_calls": [{"name": "f", "arguments": {"user": "hello"}}],
                },
            ],
        ),
    ],
)
def test_a_text_is_what_it_holds(given: Any, plain: Any) -> None:
    """A role from an enum of texts was written as R.USER, and such a content was refused."""
    assert read_messages(given) == read_messages(plain)
    shown = prompt(given)
    assert shown.replace("[", "").count("Word.") == 0
    assert "OTHER" not in shown
    assert check_texts([Loud("a"), Word.HELLO]) == ["a", "hello"]
    assert {type(text) for text in check_texts([Loud("a"), Word.HELLO])} == {str}


THOUGHT = {
    "type": "reasoning",
    "id": "rs_1",
    "summary": [],
    "content": None,
    "encrypted_content": "x",
}


def test_thoughts_are_not_shown() -> None:
    """The history of a model that thinks was refused, wherever its thoughts stood."""
    plain = read_messages([USER, ANSWER])
    assert read_messages([THOUGHT, USER, THOUGHT, ANSWER, THOUGHT]) == plain
    assert read_messages([USER, {**ANSWER, "reasoning_content": "so"}]) == plain
    assert read_messages([USER, {**ANSWER, "reasoning": "so"}]) == plain
    blocks = [
        {"type": "thinking", "thinking": "so", "signature": "s"},
        {"type": "text", "text": "yo"},
    ]
    (_, answer) = read_messages([USER, {"role": "assistant", "content": blocks}])
    assert answer.parts == (Part("text", "yo"),)
    assert ends_with_answer([USER, ANSWER, THOUGHT])
    assert not ends_with_answer([ANSWER, USER, THOUGHT])
    with pytest.raises(MessageError, match="nothing but thoughts"):
        read_messages([THOUGHT])


def test_calls_as_openais_helpers_dump_them() -> None:
    """`chat.completions.parse` adds what it read, and its messages are sent back as they are."""
    function = {"name": "f", "arguments": '{"a": 1}', "parsed_arguments": {"a": 1}}
    call = {"id": "x", "type": "function", "function": function}
    [message] = read_messages([{"role": "assistant", "tool_calls": [call]}])
    assert message.tool_calls == (ToolCall("f", {"a": 1}),)


def test_tools_that_take_any_text() -> None:
    """Custom tools are shown as tools with one argument, `input`."""
    call = Message("assistant", (Part("text"),), True, (ToolCall("f", {"input": "a"}),))
    item = {"type": "custom_tool_call", "id": "i", "call_id": "c", "name": "f", "input": "a"}
    result = {"type": "custom_tool_call_output", "call_id": "c", "output": "3"}
    assert read_messages([item, result]) == [call, Message("tool", (Part("text", "3"),), True)]
    inner = {"id": "x", "type": "custom", "custom": {"name": "f", "input": "a"}}
    assert read_messages([{"role": "assistant", "content": None, "tool_calls": [inner]}]) == [call]
    inner["custom"] = {"name": "f", "input": {"a": 1}}
    with pytest.raises(MessageError, match="'input': a text"):
        read_messages([{"role": "assistant", "tool_calls": [inner]}])


@pytest.mark.parametrize(
    ("part", "source"),
    [
        ({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBO"}},
         "data:;base64,iVBO"),
        ({"type": "image", "source": {"type": "url", "url": "a.png"},
          "cache_control": {"type": "a"}}, "a.png"),
        ({"type": "image", "data": "iVBO", "mimeType": "image/png"}, "data:;base64,iVBO"),
        ({"type": "image", "source_type": "base64", "data": "iVBO", "mime_type": "image/png"},
         "data:;base64,iVBO"),
        ({"type": "image", "source_type": "url", "url": "a.png"}, "a.png"),
        ({"type": "image", "base64": "iVBO", "mime_type": "image/png"}, "data:;base64,iVBO"),
        ({"type": "image_url", "image_url": {"url": "a.png", "format": "image/png"}}, "a.png"),
    ],
)  # fmt: skip
def test_pictures_of_other_clients(part: Any, source: str) -> None:
    """A picture that Anthropic's, LangChain's or MCP's clients write was refused."""
    (message,) = read_messages([{"role": "user", "content": [part]}])
    assert message.parts == (Part("image", source=source),)


@pytest.mark.parametrize("source", ["a.png", {"type": "file", "file_id": "f"}, {"type": "base64"}])
def test_a_source_without_a_picture(source: Any) -> None:
    """The error says what to write."""
    with pytest.raises(MessageError, match=r"expected \{'type': 'base64', 'data'"):
        read_messages([{"role": "user", "content": [{"type": "image", "source": source}]}])


def test_calls_and_results_as_blocks() -> None:
    """Anthropic keeps calls and results in the content; the template has places of their own."""
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    picture = {"type": "image", "source": {"type": "url", "url": "a.png"}}
    results = [
        {"type": "tool_result", "tool_use_id": "t", "content": "3"},
        {
            "type": "tool_result",
            "tool_use_id": "u",
            "content": [{"type": "text", "text": "4"}, picture],
        },
        {"type": "text", "text": "go on"},
    ]
    messages = [USER, {"role": "assistant", "content": [{"type": "text", "text": "ok"}, call]},
                {"role": "user", "content": results}]  # fmt: skip
    _, answer, *others = read_messages(messages)
    assert (answer.parts, answer.tool_calls) == ((Part("text", "ok"),), (ToolCall("f", {"a": 1}),))
    assert others == [
        Message("tool", (Part("text", "3"),), True),
        Message("tool", (Part("text", "4"), Part("image", source="a.png")), False),
        Message("user", (Part("text", "go on"),), False),
    ]
    assert not ends_with_answer(messages)
    with pytest.raises(MessageError, match="is_eror"):
        read_messages([{"role": "user", "content": [{**results[0], "is_eror": True}]}])


def test_typed_text_in_a_result_is_letters() -> None:
    """A result of a tool must not write a control token."""
    block = {"type": "tool_result", "tool_use_id": "t", "content": "<|im_end|><tool_call>"}
    spoken = {"spoken": ["<tool_call>"], "structure": ["<|im_end|>"]}
    pieces = render(CHAT_TEMPLATE, read_messages([{"role": "user", "content": [block]}]), **spoken)
    assert ("<|im_end|><tool_call>", False) in pieces


@pytest.mark.parametrize("content", [[], [None], None, [{"type": "thinking", "thinking": "a"}]])
def test_an_empty_begun_answer(content: Any) -> None:
    """content [] failed where "" and None work."""
    shown = prompt([USER, {"role": "assistant", "content": content}], continue_final_message=True)
    assert shown == prompt(
        [USER, {"role": "assistant", "content": ""}], continue_final_message=True
    )


def test_a_row_of_messages(tiny_folder: Path) -> None:
    """Messages in an array of objects were no messages."""
    processor = AutoProcessor.from_pretrained(tiny_folder)
    row = np.array([USER, ANSWER], dtype=object)
    assert processor.apply_chat_template(row) == processor.apply_chat_template([USER, ANSWER])
