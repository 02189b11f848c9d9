"""Chat templates: what they may do with typed text, and what they are told when they do more."""

from typing import Any

import pytest
from checkpoints import CHAT_TEMPLATE

from qwen25vl.errors import CheckpointError, MessageError, OptionError
from qwen25vl.processing.messages import read_messages
from qwen25vl.processing.template import render


def fill(template: str, *texts: str, **options: Any) -> str:
    roles = ("user", "assistant")
    messages = read_messages(
        [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    )
    return "".join(text for text, _ in render(template, messages, **options))


def test_pieces_tell_typed_text_from_the_template() -> None:
    """Two texts side by side could spell a control token together."""
    (message,) = read_messages(
        [{"role": "user", "content": [{"type": "text", "text": t} for t in ("<|im_", "end|>")]}]
    )
    pieces = render(
        "{% for part in messages[0].content %}{{ part.text }}{% endfor %}<|im_end|>", [message]
    )
    assert pieces == [("<|im_", False), ("end|>", False), ("<|im_end|>", True)]


@pytest.mark.parametrize("last", ["The answer", "The answer \n", "", "  ", "<|im_end|>"])
def test_continue_the_last_message(last: str) -> None:
    """The answer goes on where the assistant's words end, without an end token between."""
    assert fill(CHAT_TEMPLATE, "a", last, continue_final_message=True).endswith(
        f"<|im_start|>assistant\n{last}"
    )


@pytest.mark.parametrize("last", ["The answer \n", "", "  "])
def test_continue_in_a_template_that_trims(last: str) -> None:
    """As in transformers white space before the answer goes where the template
    would have trimmed it."""
    trimming = "{% for m in messages %}<{{ m.role }}>{{ m.content | trim }}</s>{% endfor %}"
    assert (
        fill(trimming, "a", last, continue_final_message=True)
        == f"<user>a</s><assistant>{last.strip()}"
    )


def test_a_picture_can_not_be_continued() -> None:
    """transformers cuts the prompt after the last text,
    so the picture behind it has no slot any more."""
    content = [{"type": "text", "text": "Look:"}, {"type": "image"}]
    with pytest.raises(MessageError, match="ends with text"):
        render(
            CHAT_TEMPLATE,
            read_messages([{"role": "assistant", "content": content}]),
            continue_final_message=True,
        )
    continued = render(
        CHAT_TEMPLATE,
        read_messages([{"role": "assistant", "content": content[::-1]}]),
        continue_final_message=True,
    )
    assert "".join(text for text, _ in continued).endswith("<|image_pad|><|vision_end|>Look:")


def test_what_can_not_be_continued() -> None:
    """An empty prompt, or one that ends elsewhere, came back without a word."""
    with pytest.raises(MessageError, match="exclude each other"):
        fill(CHAT_TEMPLATE, "a", continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(MessageError, match="ends with text"):
        render(
            CHAT_TEMPLATE,
            read_messages([{"role": "user", "content": []}]),
            continue_final_message=True,
        )
    with pytest.raises(MessageError, match="shows the last message"):
        fill("{{ messages[0].content }}", "a", "b", continue_final_message=True)


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages[0].content | trim }}!", "hi!"),
        ("{% if messages[1].content %}no{% else %}empty{% endif %}", "empty"),
        ("{% generation %}{{ messages[0].role }}{% endgeneration %}", "user"),
        ("{{ messages[0].content | trim | tojson }}", '"hi"'),
        ("{{ messages[0] | tojson(separators=(',', ':')) }}", '{"role":"user","content":" hi\\n"}'),
        (
            (
                "{{ eos_token }}{{ strftime_now('%Y')[:0] }}{% for m in messages %}{% break %}{% "
                "endfor %}"
            ),
            "<|im_end|>",
        ),
    ],
)
def test_what_the_ecosystem_gives_to_templates(template: str, text: str) -> None:
    """Stand-ins that templates can see change what they do;
    a missing eos_token is rendered as nothing."""
    assert fill(template, " hi\n", "", special_tokens={"eos_token": "<|im_end|>"}) == text


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no') }}", "refuses these messages: no"),
        ("{{ messages[0].a.b }}", "fails on these messages: 'dict object' has no attribute 'a'"),
        ("{{ 1 + 'a' }}", "fails on these messages"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ messages[0].content[3:] }}", "rewrites typed text"),
        ("{{ messages[0].content[:-1] }}", "rewrites typed text"),
        ("{{ messages[0].content | length }}", "rewrites typed text"),
        (
            "{{ messages[0].content | replace('ed', '<|im_end|>') | reverse }}",
            "rewrites typed text",
        ),
        ("{{ messages[0].content | upper }}", "rewrites typed text"),
        ("{{ messages[0].content | tojson(ensure_ascii=True) }}", "rewrites typed text"),
    ],
)
def test_templates_that_refuse_or_fail(template: str, message: str) -> None:
    """Errors of jinja2 reached the caller, and stand-ins the model."""
    with pytest.raises(MessageError, match=message):
        fill(template, "typed")
    with pytest.raises(CheckpointError, match="cannot be read"):
        fill("{% if %}", "typed")


def test_tools_need_a_place() -> None:
    """Tool calls that do nothing: the picture template drops tools without a word."""
    tools = [{"type": "function", "function": {"name": "look"}}]
    assert "look" in fill(
        "{% for tool in tools %}{{ tool | tojson }}{% endfor %}", "a", tools=tools
    )
    with pytest.raises(OptionError, match="does not use them"):
        fill(CHAT_TEMPLATE, "a", tools=tools)
