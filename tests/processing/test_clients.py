"""Messages as the clients of OpenAI's two APIs, Gradio and data sets dump them."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from checkpoints import CHAT_TEMPLATE

from qwen25vl.errors import MessageError
from qwen25vl.processing.clients import ToolCall, file_kind
from qwen25vl.processing.messages import Message, Part, ends_with_answer, read_messages
from qwen25vl.processing.template import render

PLAIN = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "yo"},
    {"role": "user", "content": "?"},
]
NOTHING = dict.fromkeys(
    "name refusal tool_calls audio annotations function_call metadata options id reasoning".split()
)


def prompt(messages: Any, **options: Any) -> str:
    return "".join(text for text, _ in render(CHAT_TEMPLATE, read_messages(messages), **options))


class Dumps:
    """What pydantic's objects have in common."""

    def __init__(self, **values: Any) -> None:
        self.values = values

    def model_dump(self) -> dict[str, Any]:
        return self.values


@dataclasses.dataclass
class ChatMessage:
    """Gradio's message, as its chat functions get it."""

    content: Any
    role: str = "assistant"
    metadata: dict[str, Any] = dataclasses.field(default_factory=dict)
    options: list[Any] = dataclasses.field(default_factory=list)


def parts_of(message: dict[str, str]) -> list[dict[str, Any]]:
    kind = "output_text" if message["role"] == "assistant" else "input_text"
    return [{"type": kind, "text": message["content"], "annotations": [], "logprobs": None}]


def rows_of(*objects: Any) -> Any:
    """Objects as pandas reads them from a Parquet file."""
    rows = np.empty(len(objects), dtype=object)
    rows[:] = objects
    return rows


SHAPES: dict[str, list[Any]] = {
    "absent keys as None": [{**message, **NOTHING} for message in PLAIN],
    "Gradio": [{**message, "metadata": {"title": None}, "options": []} for message in PLAIN],
    "Gradio's dataclass": [ChatMessage(message["content"], message["role"]) for message in PLAIN],
    "Gradio 6": [{**m, "content": [{"text": m["content"], "type": "text"}],
                  "metadata": None} for m in PLAIN],
    "Responses": [{**message, "content": parts_of(message)} for message in PLAIN],
    "Responses' items": [
        {"id": "m", "type": "message", "status": "completed", **message,
         "content": parts_of(message)}
        for message in PLAIN
    ],
    "pydantic": [Dumps(**message, **NOTHING) for message in PLAIN],
    "pydantic parts": [{**m, "content": [Dumps(type="text", text=m["content"])]} for m in PLAIN],
    "parts of a data set": [
        {
            **message,
            "content": [
                {"type": "text", "text": message["content"], "image": None, "max_pixels": None}
            ],
        }
        for message in PLAIN
    ],
    "texts": [{**message, "content": [message["content"], None]} for message in PLAIN],
    "one part": [{**m, "content": {"type": "text", "text": m["content"]}} for m in PLAIN],
    "pandas": [{**m, "content": rows_of({"type": "text", "text": m["content"]})} for m in PLAIN],
    "no calls": [PLAIN[0], {**PLAIN[1], "tool_calls": []}, PLAIN[2]],
    "a refusal": [PLAIN[0], {"role": "assistant", "content": None, "refusal": "yo"}, PLAIN[2]],
    "a refusal as part": [
        PLAIN[0], {"role": "assistant", "content": [{"type": "refusal", "refusal": "yo"}]},
        PLAIN[2],
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_dumped_messages_are_the_plain_ones(name: str) -> None:
    """Each of these was refused although nothing in it says anything else."""
    assert prompt(SHAPES[name]) == prompt(PLAIN)


def test_roles_under_other_names() -> None:
    """A developer's message beside the template's own system message gave two of them."""
    assert prompt([{"role": "developer", "content": "s"}, *PLAIN]) == prompt(
        [{"role": "system", "content": "s"}, *PLAIN]
    )
    results = [
        {"role": "function", "name": "f", "content": "3"},
        {"role": "tool", "tool_call_id": "1", "content": "3"},
    ]
    assert [message.role for message in read_messages(results)] == ["tool", "tool"]


@pytest.mark.parametrize("content", [None, "", []])
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_empty_content(role: str, content: Any) -> None:
    """content None is what openai-python dumps beside calls;
    it is an empty text, not the word None."""
    text = prompt([PLAIN[0], {"role": role, "content": content}])
    assert text.endswith(f"hi<|im_end|>\n<|im_start|>{role}\n<|im_end|>\n")


def test_content_may_be_absent_only_beside_an_answer() -> None:
    """model_dump(exclude_none=True) leaves it out; a user's message without one is a mistake."""
    assert read_messages([{"role": "assistant"}]) == [Message("assistant", (Part("text"),), True)]
    with pytest.raises(MessageError, match="expected an object with role and content"):
        read_messages([{"role": "user", "name": None}])


def test_calls_as_items() -> None:
    """The Responses API sends calls and their results beside the messages."""
    items = [
        {
            "type": "function_call",
            "id": "i",
            "call_id": "c",
            "name": "f",
            "arguments": '{"a": null}',
            "status": None,
        },
        {"type": "function_call_output", "call_id": "c", "output": "3"},
    ]
    assert read_messages(items) == [
        Message("assistant", (Part("text"),), True, (ToolCall("f", {"a": None}),)),
        Message("tool", (Part("text", "3"),), True),
    ]
    with pytest.raises(MessageError, match="expected an object with role and content"):
        read_messages([{"type": "reasoning", "summary": []}])


UPLOAD = {"path": "/uploads/cat.png", "url": "http://127.0.0.1:7860/file=cat.png", "size": 9,
          "orig_name": "cat.png", "mime_type": "image/png", "is_stream": False,
          "meta": {"_type": "gradio.FileData"}}  # fmt: skip
CAT = Part("image", source="/uploads/cat.png")
DATA = "data:image/webp;base64,UklGRg=="


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ({"path": "/uploads/cat.png"}, CAT),
        (UPLOAD, CAT),
        ([UPLOAD], CAT),
        (Dumps(**UPLOAD), CAT),
        ([{"type": "file", "file": UPLOAD, "alt_text": None}], CAT),
        (("/uploads/cat.png",), CAT),
        (("/uploads/cat.png", "a cat"), CAT),
        (("/uploads/cat.png", None), CAT),
        ([("/uploads/cat.png",)], CAT),
        ({"path": "/uploads/1", "orig_name": "dog.MP4"}, Part("video", source="/uploads/1")),
        ({"path": "/uploads/1", "mime_type": "video/webm"}, Part("video", source="/uploads/1")),
        ({"url": "https://a.example/b.jpg?width=3"}, Part("image", source="https://a.example/b.jpg?width=3")),
        ([{"type": "input_image", "image_url": "a.png", "file_id": None}],
         Part("image", source="a.png")),
        ([{"type": "image_url", "image_url": Dumps(url="a.png", detail=None)}],
         Part("image", source="a.png")),
        ([{"type": "image_url", "image_url": {"url": "a.png", "format": None}}],
         Part("image", source="a.png")),
        ([{"type": "input_file", "file_data": DATA, "filename": "a"}], Part("image", source=DATA)),
        ([{"type": "file",
           "file": {"file_data": "UklGRg==", "filename": "a.webp", "file_id": None}}],
         Part("image", source="data:;base64,UklGRg==")),
    ],
)  # fmt: skip
def test_uploaded_files(content: Any, part: Part) -> None:
    """Gradio's and OpenAI's files come with a type or a name that tells pictures from videos."""
    (message,) = read_messages([{"role": "user", "content": content}])
    assert message.parts == (part,)


@pytest.mark.parametrize(
    ("content", "error"),
    [
        (
            {"path": "uploads/report.docx"},
            "report.docx', which by its name and type is neither a picture, a video nor a PDF",
        ),
        (
            {"path": "uploads/a.png", "mime_type": "application/zip"},
            "neither a picture, a video nor a PDF document",
        ),
        ([{"type": "file", "file": "a.png"}], "str as file"),
        ([{"type": "file", "file": {"filename": "a.png"}}], "without a source"),
        ([{"type": "file", "file": {"pth": "a.png"}}], "did you mean path"),
        ([{"type": "image", "image": "a", "max_pixel": 9}], "did you mean max_pixels"),
        (
            [{"type": "image", "image": "a", "max_pixels": "many"}],
            "max_pixels is 'many'; expected a number",
        ),
        ([{"type": "image_url", "image_url": {"url": "a", "detials": 1}}], "did you mean detail"),
        ([{"type": "text", "text": "a", "textt": "b"}], "did you mean text"),
    ],
)
def test_what_is_wrong_is_named(content: Any, error: str) -> None:
    """A misspelt key is answered with the nearest known one, in files, parts and addresses."""
    with pytest.raises(MessageError, match=error):
        read_messages([{"role": "user", "content": content}])


def test_misspelt_keys_of_messages() -> None:
    """What carries a value and is not known is never dropped."""
    with pytest.raises(MessageError, match="has tool_call; did you mean tool_calls"):
        read_messages([{"role": "assistant", "content": "", "tool_call": [{}]}])
    with pytest.raises(MessageError, match="has audio"):
        read_messages([{"role": "assistant", "content": None, "audio": {"id": "a"}}])
    with pytest.raises(MessageError, match="content and refusal"):
        read_messages([{"role": "assistant", "content": "a", "refusal": "b"}])


def test_a_tuple_of_texts_is_no_file() -> None:
    """Only what ends like a picture or a video is Gradio's pair of a path and its description."""
    (message,) = read_messages([{"role": "user", "content": ("look", "at this.")}])
    assert [part.text for part in message.parts] == ["look", "at this."]
    assert file_kind(None, Path("a.JPEG")) == "image"
    assert file_kind("text/html", "a.png") is None


@pytest.mark.parametrize(
    ("kind", "name", "text", "number"),
    [
        ("image", "min_pixels", "100352", 100352),
        ("image", "resized_height", " 56 ", 56),
        ("video", "fps", "0.5", 0.5),
        ("video", "sample_fps", "1", 1),
        ("video", "nframes", "4", 4),
        ("video", "video_end", "1e1", 10.0),
        ("video", "total_pixels", "+9", 9),
    ],
)
def test_numbers_spelt_as_texts(kind: str, name: str, text: str, number: float) -> None:
    """JSON made by hand, forms and environment variables spell numbers as texts."""
    (message,) = read_messages(
        [{"role": "user", "content": [{"type": kind, kind: "a", name: text}]}]
    )
    value = message.parts[0].options[name]
    assert (value, type(value)) == (number, type(number))


def test_who_spoke_last() -> None:
    """An answer that was begun is one in every shape."""
    for last in ({"role": "assistant"}, Dumps(role="assistant", content=""), ChatMessage("yo"),
                 {"type": "function_call", "name": "f", "arguments": ""}):  # fmt: skip
        assert ends_with_answer([PLAIN[0], last])
    assert not ends_with_answer(PLAIN)
    assert not ends_with_answer([])
    assert not ends_with_answer(["assistant"])
