"""Prompts against transformers 5.23 with the real vocabulary:
text, ids, grids and pixels of fifty conversations."""

import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CHAT_TEMPLATE
from PIL import Image

from qwen25vl import AutoProcessor, Qwen2_5_VLProcessor

TEXTS = [
    "Hello, how are you?",
    "",
    " leading and trailing ",
    "\n\nnewlines first",
    "newlines last\n\n",
    "\r\nCRLF\r\n",
    "\t tabs \t",
    "你好，世界！这张图片里有什么？",
    "日本語のテキスト、ひらがなとカタカナ。",
    "한국어 텍스트",
    "مرحبا بالعالم",
    "👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 👍🏽",
    "e\u0301 combining, é composed",
    "ﬁ ligature Å ångström",
    "<|im_star|> <| im_end |> </tool_cal> <tool_calls> <|image_pad >",
    '{"name": "get_weather", "arguments": {"city": "Paris"}}',
    "def f(x):\n    return x ** 2  # 100%\n",
    "1234567890 3.14159 1e-6",
    "don't I'll you're WE'VE",
    "https://example.com/a?b=c&d=e#f",
    "   ",
    "a" * 300,
    "| a | b |\n|---|---|\n| 1 | 2 |",
    "{{ jinja }} {% if x %} {# comment #}",
    "zero\u200bwidth \u00a0nbsp \ufeffbom",
]
SIZES = [(120, 90), (28, 28), (300, 40), (57, 333), (200, 200), (10, 17)]


def conversation(seed: int) -> tuple[list[dict[str, Any]], list[Image.Image]]:
    """Roles, texts and pictures drawn by a seed."""
    random_ = random.Random(seed)
    messages: list[dict[str, Any]] = []
    pictures: list[Image.Image] = []
    if random_.random() < 0.5:
        messages.append({"role": "system", "content": random_.choice(TEXTS)})
    for turn in range(random_.randint(1, 4)):
        role = "user" if turn % 2 == 0 else "assistant"
        if random_.random() < 0.4:
            messages.append({"role": role, "content": random_.choice(TEXTS)})
            continue
        content: list[dict[str, Any]] = []
        for _ in range(random_.randint(1, 4)):
            if random_.random() < 0.4:
                noise = np.random.default_rng(seed).integers(
                    0, 256, (*random_.choice(SIZES), 3), dtype=np.uint8
                )
                pictures.append(Image.fromarray(noise))
                content.append({"type": "image", "image": pictures[-1]})
            else:
                content.append({"type": "text", "text": random_.choice(TEXTS)})
        messages.append({"role": role, "content": content})
    return messages, pictures


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Qwen2_5_VLProcessor:
    return AutoProcessor.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def reference(tiny_folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_folder)


@pytest.mark.parametrize("seed", range(50))
def test_conversations(processor: Qwen2_5_VLProcessor, reference: Any, seed: int) -> None:
    """Text typed by people merges with the template's around it exactly as in the reference."""
    from transformers import Qwen2VLImageProcessorPil

    messages, pictures = conversation(seed)
    options: dict[str, Any] = {
        "add_generation_prompt": seed % 2 == 0,
        "add_vision_id": seed % 3 == 0,
    }
    expected = reference.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, tokenize=False, **options
    )
    assert processor.apply_chat_template(messages, **options) == expected

    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, **options)
    if pictures:
        grids = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12845056})(
            pictures, return_tensors="pt"
        ).image_grid_thw
        assert torch.equal(inputs.image_grid_thw, grids)
        for grid in grids:
            slot = "<|image_pad|>"
            expected = expected.replace(slot, "<|placeholder|>" * int(grid.prod() // 4), 1)
        expected = expected.replace("<|placeholder|>", slot)
    assert inputs.input_ids[0].tolist() == reference(expected).input_ids
    again = processor(text=[expected.replace("<|image_pad|>", "")]).input_ids
    assert again[0].tolist() == reference(expected.replace("<|image_pad|>", "")).input_ids


@pytest.mark.parametrize("last", ["The answer is", "", "ends in space ", "你好\n\n"])
def test_continued_messages(processor: Qwen2_5_VLProcessor, reference: Any, last: str) -> None:
    """The prompt of a continued message ends exactly where the message does."""
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": [{"type": "text", "text": last}]},
    ]
    expected = reference.apply_chat_template(
        messages, chat_template=CHAT_TEMPLATE, tokenize=False, continue_final_message=True
    )
    assert processor.apply_chat_template(messages, continue_final_message=True) == expected


TRIMMING = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n"
    "{% endfor %}"
)
WITH_TOOLS = (
    "<|im_start|>system\nUse <tools>\n{% for tool in tools %}{{ tool | tojson }}\n"
    "{% endfor %}</tools> and answer "
    '<tool_call>\n{"name": <name>}\n</tool_call>.<|im_end|>\n'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    '{{ m.content }}{% for call in m.tool_calls or [] %}{{ "\n" }}<tool_call>\n'
    '{"name": "{{ call.function.name }}", '
    '"arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}<|im_end|>\n'
    "{% endfor %}"
)


@pytest.mark.parametrize("template", [CHAT_TEMPLATE, TRIMMING])
@pytest.mark.parametrize("last", ["One, two,", " ", "", "\n two \n", "<tool_call>\n{", "end\u00a0"])
def test_continued_strings(
    processor: Qwen2_5_VLProcessor, reference: Any, template: str, last: str
) -> None:
    """White space at the end of a begun answer, in templates that keep it and in such that trim."""
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": last}]
    options: dict[str, Any] = {"chat_template": template, "continue_final_message": True}
    expected = reference.apply_chat_template(messages, tokenize=False, **options)
    assert processor.apply_chat_template(messages, **options) == expected
    assert (
        processor.apply_chat_template(messages, tokenize=True, **options)[0]
        == reference(expected).input_ids
    )


def test_spoken_control_tokens(processor: Qwen2_5_VLProcessor, reference: Any) -> None:
    """An agent's history: the system's example and the model's own calls are
    the tokens that it writes itself."""
    call = '<tool_call>\n{"name": "tap", "arguments": {"at": [5, 6]}}\n</tool_call>'
    boxes = "<|object_ref_start|>a cup<|object_ref_end|><|box_start|>(1,2),(3,4)<|box_end|>"
    messages = [
        {"role": "system", "content": "Answer with <tool_call>…</tool_call> \n"},
        {"role": "user", "content": "tap it"},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": text} for text in ("\n", boxes, f" {call}")],
        },
        {"role": "user", "content": "where?"},
        {"role": "assistant", "content": f"{boxes}\n\n<|quad_start|>(1,2)<|quad_end|>"},
    ]
    rendered = processor.apply_chat_template(messages, add_generation_prompt=True)
    ids = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=True)[0]
    assert ids == reference(rendered).input_ids
    assert [ids.count(number) for number in (151646, 151648, 151650, 151657)] == [2, 2, 1, 2]


def test_tools_and_calls(processor: Qwen2_5_VLProcessor, reference: Any) -> None:
    """A template that has a place for tools writes them and the calls as it does in transformers;
    but what a description spells is no control token."""
    tool: dict[str, Any] = {
        "type": "function",
        "function": {"name": "tap", "description": 'at "x", <tool_call>', "parameters": {}},
    }
    arguments = {"at": [5, 6], "who": 'é "you"', "none": None}
    messages = [
        {"role": "user", "content": "tap it"},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "tap", "arguments": arguments}}],
        },
        {"role": "tool", "content": "done"},
    ]
    options: dict[str, Any] = {"chat_template": WITH_TOOLS, "tools": [tool]}
    expected = reference.apply_chat_template(messages, tokenize=False, **options)
    assert processor.apply_chat_template(messages, **options) == expected
    typed = processor.apply_chat_template(messages, tokenize=True, **options)[0]
    assert typed.count(151657) == reference(expected).input_ids.count(151657) - 1  # a letter here
    tool["function"]["description"] = 'at "x"'
    expected = reference.apply_chat_template(messages, tokenize=False, **options)
    ids = processor.apply_chat_template(messages, tokenize=True, **options)[0]
    assert ids == reference(expected).input_ids


def test_what_is_saved_is_read(
    processor: Qwen2_5_VLProcessor, tiny_folder: Path, tmp_path: Path
) -> None:
    """transformers finds vocabulary, control tokens and the bounds of
    pictures in a saved processor."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    AutoProcessor.from_pretrained(tiny_folder, max_pixels=500 * 784).save_pretrained(tmp_path)
    shutil.copy(tiny_folder / "config.json", tmp_path)
    text = "<|im_start|>user\n你好<|im_end|>"
    assert (
        AutoTokenizer.from_pretrained(tmp_path)(text).input_ids
        == processor(text=text).input_ids[0].tolist()
    )
    assert Qwen2VLImageProcessorPil.from_pretrained(tmp_path).size["longest_edge"] == 500 * 784


def test_decoding(processor: Qwen2_5_VLProcessor, reference: Any) -> None:
    """Ids of any kind, half characters, control tokens and ids beyond the vocabulary."""
    random_ = random.Random(0)
    for length in (1, 2, 5, 40):
        for _ in range(25):
            ids = [random_.randrange(151665) for _ in range(length)]
            for skip in (False, True):
                assert processor.decode(ids, skip_special_tokens=skip) == reference.decode(
                    ids, skip_special_tokens=skip
                )
    assert processor.decode([151900, 9707]) == "Hello"
