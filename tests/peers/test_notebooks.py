"""The utility code of the model's public notebooks (spatial understanding, OCR, documents, mobile
agent, computer use, videos), in our words: what they call, and how they go from boxes in the
answer to pixels of the picture."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer as PeerTokenizer

from qwen25vl import AutoProcessor, Qwen2_5_VLForConditionalGeneration
from qwen25vl.processing.image import smart_resize

PROMPT = "Outline the position of each cake and output all the coordinates in JSON format."


@pytest.fixture(scope="module")
def processor(tiny_folder: Path) -> Any:
    return AutoProcessor.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def peer(tiny_folder: Path) -> Any:
    return PeerTokenizer.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def model(tiny_folder: Path) -> Any:
    return Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_folder, torch_dtype="auto")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "cakes.png"
    Image.effect_noise((150, 101), 80).convert("RGB").save(path)
    return path


def conversation(picture: Path) -> list[dict[str, Any]]:
    """As the notebooks write it: the picture's part has no type, and comes last."""
    content = [{"type": "text", "text": PROMPT}, {"image": str(picture)}]
    return [
        {"role": "system", "content": "You are a helpful assistant"},
        {"role": "user", "content": content},
    ]


def rendered(processor: Any, peer: Any, messages: list[dict[str, Any]]) -> str:
    """The text of the template, which is that of transformers."""
    options = {"tokenize": False, "add_generation_prompt": True}
    text: str = processor.apply_chat_template(messages, **options)
    template = processor.chat_template
    assert text == peer.apply_chat_template(messages, chat_template=template, **options)
    return text


def test_spatial_understanding(processor: Any, peer: Any, model: Any, picture: Path) -> None:
    """inference(img_url, prompt): text by the template, the picture beside it, the sizes that boxes
    are divided by."""
    messages = conversation(picture)
    text = rendered(processor, peer, messages)
    image = Image.open(picture)
    inputs = processor(text=[text], images=[image], padding=True, return_tensors="pt").to("cpu")
    slots = text.replace("<|image_pad|>", "<|image_pad|>" * (8 * 10 // 4))
    assert inputs["input_ids"].tolist() == peer([slots])["input_ids"]
    written = model.generate(**inputs, max_new_tokens=2)
    new = [out[len(given) :] for given, out in zip(inputs.input_ids, written, strict=True)]
    texts = processor.batch_decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=True)
    assert len(texts) == 1
    height, width = (inputs["image_grid_thw"][0][axis] * 14 for axis in (1, 2))
    assert (int(height), int(width)) == smart_resize(101, 150) == (112, 140)
    box = [14, 28, 70, 56]
    left, top = int(box[0] / width * image.width), int(box[1] / height * image.height)
    assert (left, top) == (15, 25)


def test_agents(processor: Any, picture: Path) -> None:
    """Mobile agent and computer use: messages as objects of another package, and the screen's size
    from the attributes of the image processor."""
    part = processor.image_processor
    screen = Image.open(picture)
    height, width = smart_resize(
        screen.height,
        screen.width,
        factor=part.patch_size * part.merge_size,
        min_pixels=part.min_pixels,
        max_pixels=part.max_pixels,
    )
    system = SimpleNamespace(role="system", content=[SimpleNamespace(text=f"{width}x{height}")])
    messages = [
        {
            "role": system.role,
            "content": [{"type": "text", "text": item.text} for item in system.content],
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "The user query: open the file manager"},
                {"type": "image", "image": str(picture), "min_pixels": 3136, "max_pixels": 12544},
            ],
        },
    ]
    text = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    text += '<tool_call>\n{"name": "mobile_use", "arguments":'  # the answer's beginning is given
    inputs = processor(text=[text], images=[screen], padding=True, return_tensors="pt")
    assert inputs.image_grid_thw.tolist() == [[1, height // 14, width // 14]]


def test_videos(processor: Any, peer: Any, model: Any) -> None:
    """inference(video_path, prompt, total_pixels, min_pixels): frames and their rate as
    process_vision_info returns them."""
    frames = torch.randint(256, (6, 3, 56, 84), generator=torch.Generator().manual_seed(0)).float()
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "What is it?"},
                {"video": "clip.mp4", "total_pixels": 20480 * 784, "min_pixels": 16 * 784},
            ],
        }
    ]
    text = rendered(processor, peer, messages)
    inputs = processor(
        text=[text], images=None, videos=[frames], fps=[2.0], padding=True, return_tensors="pt"
    )
    assert inputs["video_grid_thw"].tolist() == [[3, 4, 6]]
    assert inputs["second_per_grid_ts"].tolist() == [1.0]
    written = model.generate(**inputs.to("cpu"), max_new_tokens=2)
    assert written.shape[1] == inputs.input_ids.shape[1] + 2
