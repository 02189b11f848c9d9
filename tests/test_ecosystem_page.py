"""The ecosystem's documentation page of this model, call by call,
with only the import line changed.

Each test is one example of the page, on a tiny checkpoint folder and files in place of the hub's
name and addresses.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qwen25vl import (
    AutoModelForImageTextToText,
    AutoProcessor,
    Qwen2_5_VLForConditionalGeneration,
    TorchAoConfig,
    pipeline,
)

MIXED = (
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    "{p1}<|vision_start|><|image_pad|><|vision_end|>Hello, how are you?<|im_end|>\n"
    "<|im_start|>assistant\nI'm doing well, thank you for asking. How can I assist you "
    "today?<|im_end|>\n"
    "<|im_start|>user\nCan you describe these images and video?"
    "{p2}<|vision_start|><|image_pad|><|vision_end|>{p3}<|vision_start|><|image_pad|><|vision_end|>"
    "{v1}<|vision_start|><|video_pad|><|vision_end|>These are from my vacation.<|im_end|>\n"
    "<|im_start|>assistant\nI'd be happy to describe the images and video for you. Could you "
    "please provide more context about your vacation?<|im_end|>\n"
    "<|im_start|>user\nIt was a trip to the mountains. Can you see the details in the images and "
    "video?<|im_end|>\n"
    "<|im_start|>assistant\n"
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two pictures and a clip of two seconds at 8 frames per second."""
    folder = tmp_path_factory.mktemp("page")
    for name, size in (("one.jpg", (120, 90)), ("two.png", (64, 200))):
        Image.effect_noise(size, 70).convert("RGB").save(folder / name)
    av = pytest.importorskip("av")
    with av.open(str(folder / "clip.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for index in range(16):
            picture = Image.new("RGB", (96, 64), (15 * index, 99, 0))
            container.mux(stream.encode(av.VideoFrame.from_image(picture)))
        container.mux(stream.encode())
    return {name: str(folder / name) for name in ("one.jpg", "two.png", "clip.mp4")}


def test_pipeline_example(tiny_folder: Path, files: dict[str, str]) -> None:
    """`{"type": "image", "url": …}` and device=0 in a pipeline."""
    pipe = pipeline(
        task="image-text-to-text", model=str(tiny_folder), device=0, dtype=torch.bfloat16
    )
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": files["one.jpg"]},
                {"type": "text", "text": "Describe this image."},
            ],
        }
    ]
    out = pipe(text=messages, max_new_tokens=20, return_full_text=False)
    assert out[0]["input_text"] == messages
    assert isinstance(out[0]["generated_text"], str)


def test_automodel_example(tiny_folder: Path, files: dict[str, str]) -> None:
    """dtype=torch.float16 with device_map="auto", trimming by zip, batch_decode."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        str(tiny_folder), dtype=torch.float16, device_map="auto", attn_implementation="sdpa"
    )
    processor = AutoProcessor.from_pretrained(str(tiny_folder))
    messages = [
        {
            "role": "user",
            "content": [
                {"type": "image", "url": files["one.jpg"]},
                {"type": "text", "text": "What is shown in this image?"},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    generated_ids = model.generate(**inputs, max_new_tokens=16)
    generated_ids_trimmed = [
        out_ids[len(in_ids) :]
        for in_ids, out_ids in zip(inputs.input_ids, generated_ids, strict=True)
    ]
    output_text = processor.batch_decode(
        generated_ids_trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    assert len(output_text) == 1
    assert isinstance(output_text[0], str)
    assert len(generated_ids_trimmed[0]) == 16


def test_int4_example(tiny_folder: Path, files: dict[str, str]) -> None:
    """TorchAoConfig("int4_weight_only", group_size=…);
    the tiny model's rows are shorter than the page's 128."""
    quantization_config = TorchAoConfig("int4_weight_only", group_size=32)
    model = AutoModelForImageTextToText.from_pretrained(
        str(tiny_folder),
        dtype=torch.bfloat16,
        device_map="auto",
        quantization_config=quantization_config,
    )
    processor = AutoProcessor.from_pretrained(str(tiny_folder))
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "path": files["one.jpg"]}, {"type": "text", "text": "?"}],
        }
    ]
    inputs = processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
    ).to(model.device)
    assert model.generate(**inputs, max_new_tokens=4).shape[1] == inputs.input_ids.shape[1] + 4
    assert TorchAoConfig("int4_weight_only", group_size=128).group_size == 128


def test_video_example(tiny_folder: Path, files: dict[str, str]) -> None:
    """A video by path and `video_fps=1`:
    two seconds at one frame per second are the minimum of four frames."""
    model = AutoModelForImageTextToText.from_pretrained(str(tiny_folder), dtype="auto")
    processor = AutoProcessor.from_pretrained(str(tiny_folder))
    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "video", "path": files["clip.mp4"]},
                {"type": "text", "text": "What happened in the video?"},
            ],
        }
    ]
    inputs = processor.apply_chat_template(
        conversation,
        video_fps=1,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device)
    assert inputs.video_grid_thw[0, 0] == 2
    assert inputs.second_per_grid_ts.tolist() == pytest.approx([1.0])
    output_ids = model.generate(**inputs, max_new_tokens=4)
    generated_ids = [
        output_ids[len(input_ids) :]
        for input_ids, output_ids in zip(inputs.input_ids, output_ids, strict=True)
    ]
    texts = processor.batch_decode(
        generated_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True
    )
    assert len(texts) == 1


def mixed_conversation() -> list[dict[str, object]]:
    return [
        {
            "role": "user",
            "content": [{"type": "image"}, {"type": "text", "text": "Hello, how are you?"}],
        },
        {
            "role": "assistant",
            "content": "I'm doing well, thank you for asking. How can I assist you today?",
        },
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Can you describe these images and video?"},
                {"type": "image"},
                {"type": "image"},
                {"type": "video"},
                {"type": "text", "text": "These are from my vacation."},
            ],
        },
        {
            "role": "assistant",
            "content": (
                "I'd be happy to describe the images and video for you. Could you please provide "
                "more context about your vacation?"
            ),
        },
        {
            "role": "user",
            "content": (
                "It was a trip to the mountains. Can you see the details in the images and video?"
            ),
        },
    ]


def test_mixed_conversation_without_media(tiny_folder: Path) -> None:
    """Rendered without media given, with and without ids, to exactly the page's text."""
    processor = AutoProcessor.from_pretrained(str(tiny_folder))
    conversation = mixed_conversation()
    numbered = processor.apply_chat_template(
        conversation, add_generation_prompt=True, add_vision_id=True
    )
    assert numbered == MIXED.format(
        p1="Picture 1: ", p2="Picture 2: ", p3="Picture 3: ", v1="Video 1: "
    )
    assert processor.apply_chat_template(conversation, add_generation_prompt=True) == MIXED.format(
        p1="", p2="", p3="", v1=""
    )


def test_pixel_bounds_on_the_processor(tiny_folder: Path, files: dict[str, str]) -> None:
    """min_pixels and max_pixels as the page sets them, 256 to 1024 tokens;
    also by their newer names."""
    min_pixels, max_pixels = 224 * 224, 448 * 448
    messages = [{"role": "user", "content": [{"type": "image", "url": files["one.jpg"]}]}]
    for options in (
        {"min_pixels": min_pixels, "max_pixels": max_pixels},
        {"size": {"shortest_edge": min_pixels, "longest_edge": max_pixels}},
    ):
        processor = AutoProcessor.from_pretrained(str(tiny_folder), **options)
        inputs = processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, return_tensors="pt"
        )
        assert min_pixels <= len(inputs.pixel_values) * 14 * 14 <= max_pixels


def test_mixed_batch(tiny_folder: Path, files: dict[str, str]) -> None:
    """A picture, text alone, two pictures and a video in one padded batch;
    each answered as if alone."""
    model = AutoModelForImageTextToText.from_pretrained(str(tiny_folder), dtype="auto")
    processor = AutoProcessor.from_pretrained(str(tiny_folder))

    def user(*content: dict[str, str]) -> list[dict[str, object]]:
        return [{"role": "user", "content": list(content)}]

    conversations = [
        user({"type": "image", "path": files["one.jpg"]},
             {"type": "text", "text": "Describe this image."}),
        [{"role": "user", "content": "who are you?"}],
        [{"role": "system", "content": "Be brief."}, *user(
            {"type": "image", "path": files["one.jpg"]},
            {"type": "image", "path": files["two.png"]},
            {"type": "video", "path": files["clip.mp4"]},
            {"type": "text", "text": "What are the common elements?"},
        )],
        user({"type": "video", "path": files["clip.mp4"]},
             {"type": "text", "text": "What happened in the video?"}),
    ]  # fmt: skip
    options = {"video_fps": 1, "add_generation_prompt": True, "tokenize": True, "return_dict": True}
    inputs = processor.apply_chat_template(
        conversations, padding=True, padding_side="left", return_tensors="pt", **options
    ).to(model.device)
    together = model.generate(**inputs, max_new_tokens=8)[:, inputs.input_ids.shape[1] :]
    for conversation, row in zip(conversations, together, strict=True):
        single = processor.apply_chat_template(conversation, return_tensors="pt", **options)
        alone = model.generate(**single, max_new_tokens=8)[0, single.input_ids.shape[1] :]
        assert torch.equal(row[: len(alone)], alone)
    assert len(processor.batch_decode(together, skip_special_tokens=True)) == 4


@pytest.mark.parametrize(
    "video_kwargs", [{"fps": [4.0]}, {"fps": [4.0], "do_sample_frames": False}, {"fps": 4.0}]
)
def test_qwen_vl_utils_way(
    tiny_folder: Path, files: dict[str, str], video_kwargs: dict[str, object]
) -> None:
    """The official README: render, process_vision_info(…, return_video_kwargs=True),
    processor(…, **video_kwargs).

    What that function returns is made here by hand: pictures resized to whole tokens, a video as
    float frames [T, 3, H, W] in 0..255, and the rate at which they were chosen.
    """
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        str(tiny_folder), torch_dtype="auto", device_map="auto"
    )
    processor = AutoProcessor.from_pretrained(str(tiny_folder))
    content = [
        {"type": "image", "image": files["one.jpg"]},
        {"type": "video", "video": files["clip.mp4"], "fps": 4.0},
        {"type": "text", "text": "Describe both."},
    ]
    text = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert isinstance(text, str)
    with Image.open(files["one.jpg"]) as picture:
        image_inputs = [picture.convert("RGB").resize((112, 84))]
    frames = np.random.default_rng(0).integers(0, 256, (8, 3, 56, 84))
    video_inputs = [torch.from_numpy(frames).float()]
    inputs = processor(
        text=[text],
        images=image_inputs,
        videos=video_inputs,
        padding=True,
        return_tensors="pt",
        **video_kwargs,
    ).to(model.device)
    assert inputs.image_grid_thw.tolist() == [[1, 6, 8]]
    assert inputs.second_per_grid_ts.tolist() == [0.5]
    assert inputs.video_grid_thw[0, 0] == 4
    generated_ids = model.generate(**inputs, max_new_tokens=4)
    trimmed = [
        out_ids[len(in_ids) :]
        for in_ids, out_ids in zip(inputs.input_ids, generated_ids, strict=True)
    ]
    assert (
        len(
            processor.batch_decode(
                trimmed, skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        )
        == 1
    )
