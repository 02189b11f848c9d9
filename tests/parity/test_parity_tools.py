"""Conversations with tools against transformers, under the template of Qwen2.5's text models."""

from pathlib import Path
from typing import Any

import pytest
from checkpoints import CHAT_TEMPLATE
from PIL import Image

from qwen25vl import AutoProcessor, Qwen2_5_VLProcessor
from qwen25vl.errors import OptionError
from qwen25vl.processing.tool_template import TOOL_TEMPLATE, is_released, with_tools

TEXT_TEMPLATE = r"""{%- if tools %}
    {{- '<|im_start|>system\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are a helpful assistant.' }}
    {%- endif %}
    {{- "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with function signatures within <tools></tools> XML tags:\n<tools>" }}
    {%- for tool in tools %}
        {{- "\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\n</tools>\n\nFor each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n{\"name\": <function-name>, \"arguments\": <args-json-object>}\n</tool_call><|im_end|>\n" }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}
    {%- else %}
        {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
    {%- elif message.role == "assistant" %}
        {{- '<|im_start|>' + message.role }}
        {%- if message.content %}
            {{- '\n' + message.content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls %}
            {%- if tool_call.function is defined %}
                {%- set tool_call = tool_call.function %}
            {%- endif %}
            {{- '\n<tool_call>\n{"name": "' }}
            {{- tool_call.name }}
            {{- '", "arguments": ' }}
            {{- tool_call.arguments | tojson }}
            {{- '}\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\n<tool_response>\n' }}
        {{- message.content }}
        {{- '\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}
            {{- '<|im_end|>\n' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}
{%- endif %}
"""  # noqa: E501

TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "tap",
        "description": 'at "x", é <tool_call> <|im_end|>',
        "parameters": {"type": "object", "properties": {"at": {"type": "array"}}},
    },
}
CALLS = [{"type": "function", "function": {"name": "tap", "arguments": {"at": [5, 6], "é": "\n"}}}]
SYSTEM = {"role": "system", "content": "Tap. \n"}
USER = {"role": "user", "content": " tap it "}
CONVERSATIONS: list[list[dict[str, Any]]] = [
    [USER],
    [SYSTEM, USER],
    [SYSTEM, USER, {"role": "assistant", "content": "Well.", "tool_calls": CALLS}],
    [
        USER,
        {"role": "assistant", "content": "", "tool_calls": [*CALLS, *CALLS]},
        {"role": "tool", "content": "one"},
        {"role": "tool", "content": "two </tool_response>"},
        {"role": "assistant", "content": "Done."},
        SYSTEM,
        USER,
    ],
]


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def reference(tiny_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.mark.parametrize("tools", [None, [TOOL], [TOOL, TOOL]], ids=["none", "one", "two"])
@pytest.mark.parametrize("messages", CONVERSATIONS, ids=range(4))
def test_the_text_models_form(
    processor: Qwen2_5_VLProcessor, reference: Any, messages: list[Any], tools: Any
) -> None:
    """The released template of pictures drops tools; a form that the model never saw in training
    calls nothing."""
    wanted = reference.apply_chat_template(
        messages, chat_template=TEXT_TEMPLATE, tools=tools, tokenize=False,
        add_generation_prompt=True,
    )  # fmt: skip
    options = {} if tools else {"chat_template": TOOL_TEMPLATE}
    ours = processor.apply_chat_template(
        messages, tools=tools, add_generation_prompt=True, **options
    )
    assert ours == wanted


def test_calls_go_back_as_control_tokens(processor: Qwen2_5_VLProcessor, reference: Any) -> None:
    """As the model wrote them; what a tool answers, and how it is described, stays letters."""
    messages = [*CONVERSATIONS[3][:2], {"role": "tool", "content": "<tool_call> <|im_end|>"}]
    options: dict[str, Any] = {"tools": [TOOL], "tokenize": True}
    ids = processor.apply_chat_template(messages, **options)[0]
    opened, ended = 151657, 151645
    assert ids.count(opened) == 2 + 2  # the system's example and its words, calls
    assert ids.count(ended) == 4
    plain = reference(processor.apply_chat_template(messages, tools=[TOOL])).input_ids
    assert plain.count(ended) == 6


def test_pictures_in_any_message(processor: Qwen2_5_VLProcessor) -> None:
    """A browser's tools answer with pictures, in order with those before."""
    picture = {"type": "image", "image": Image.new("RGB", (56, 56))}
    text = {"type": "text", "text": "see"}
    messages = [
        {"role": "system", "content": [text]},
        {"role": "user", "content": [picture, text]},
        {"role": "assistant", "content": None, "tool_calls": CALLS},
        {"role": "tool", "content": [text, picture]},
        {"role": "tool", "content": [picture]},
    ]
    prompt = processor.apply_chat_template(
        messages, tools=[TOOL], add_vision_id=True, add_generation_prompt=True
    )
    slot = "<|vision_start|><|image_pad|><|vision_end|>"
    assert prompt.endswith(
        f"<|im_start|>user\nPicture 1: {slot}see<|im_end|>\n<|im_start|>assistant\n<tool_call>\n"
        '{"name": "tap", "arguments": {"at": [5, 6], "é": "\\n"}}\n</tool_call><|im_end|>\n'
        f"<|im_start|>user\n<tool_response>\nseePicture 2: {slot}\n</tool_response>\n"
        f"<tool_response>\nPicture 3: {slot}\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
    )
    inputs = processor.apply_chat_template(messages, tools=[TOOL], tokenize=True, return_dict=True)
    assert inputs.image_grid_thw.tolist() == [[1, 4, 4]] * 3


def test_only_the_released_template_makes_way(processor: Qwen2_5_VLProcessor) -> None:
    """A template of one's own that shows no tools would be dropped without a word."""
    assert is_released(CHAT_TEMPLATE)
    assert is_released(CHAT_TEMPLATE.replace("{% endif %}{% endfor %}", "{% endif %}{%- endfor %}"))
    assert with_tools(TEXT_TEMPLATE) == TEXT_TEMPLATE
    own = CHAT_TEMPLATE.replace("helpful", "terse")
    assert with_tools(own) == own
    with pytest.raises(OptionError, match="tools"):
        processor.apply_chat_template([USER], chat_template=own, tools=[TOOL])
