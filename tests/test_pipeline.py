"""pipeline("image-text-to-text"): the ecosystem's calls and the shapes of its answers."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from qwen25vl import AutoModelForImageTextToText, AutoProcessor, pipeline
from qwen25vl.errors import OptionError, UsageError

SLOT = "<|vision_start|><|image_pad|><|vision_end|>"


@pytest.fixture(scope="module")
def pipe(tiny_folder: Path) -> Any:
    return pipeline("image-text-to-text", model=tiny_folder, dtype=torch.float32)


def picture(shade: int = 90) -> Image.Image:
    return Image.new("RGB", (56, 84), (shade, 200, 10))


def chat(text: str, *pictures: Image.Image) -> list[dict[str, object]]:
    content: list[dict[str, object]] = [{"type": "image", "image": each} for each in pictures]
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]


def test_one_conversation(pipe: Any) -> None:
    """[{"input_text", "generated_text"}]:
    the new text alone, or by default the conversation with the answer."""
    messages = chat("What is this?", picture())
    (record,) = pipe(text=messages, max_new_tokens=5, return_full_text=False)
    assert record.keys() == {"input_text", "generated_text"}
    assert record["input_text"] == messages
    assert isinstance(record["generated_text"], str)
    for full in (None, True):
        (whole,) = pipe(text=messages, max_new_tokens=5, return_full_text=full)
        assert whole["generated_text"] == [
            *messages,
            {"role": "assistant", "content": record["generated_text"]},
        ]
    assert pipe(messages, max_new_tokens=5, return_full_text=False) == [record]
    assert len(messages) == 1


def test_a_list_of_conversations(pipe: Any) -> None:
    """A list of lists of records, in order, whatever is answered together;
    pictures stay with their own."""
    chats = [
        chat("One", picture(10)),
        chat("Two"),
        chat("And three, longer", picture(250), picture(0)),
    ]
    alone = [pipe(text=each, max_new_tokens=5) for each in chats]
    assert pipe(text=chats, max_new_tokens=5) == alone
    assert pipe(text=chats, max_new_tokens=5, batch_size=3) == alone


def test_an_answer_that_was_begun_is_continued(pipe: Any) -> None:
    """A last message of the assistant is a beginning: no new turn is opened, and the text grows."""
    begun = [
        *chat("What is this?", picture()),
        {"role": "assistant", "content": [{"type": "text", "text": "It is a"}]},
    ]
    (new,) = pipe(text=begun, max_new_tokens=5, return_full_text=False)
    (full,) = pipe(text=begun, max_new_tokens=5)
    assert full["generated_text"][-1]["content"][-1]["text"] == "It is a" + new["generated_text"]
    assert begun[-1]["content"][-1]["text"] == "It is a"
    plain = [*chat("What is this?", picture()), {"role": "assistant", "content": "It is a"}]
    (full,) = pipe(text=plain, max_new_tokens=5)
    assert full["generated_text"][-1] == {
        "role": "assistant",
        "content": "It is a" + new["generated_text"],
    }
    (opened,) = pipe(text=begun, max_new_tokens=5, continue_final_message=False)
    assert len(opened["generated_text"]) == 3


def test_prompts_and_pictures(pipe: Any) -> None:
    """pipe(images=…, text=prompt): the prompt is text as it is, slots included."""
    (record,) = pipe(images=picture(), text=f"{SLOT}This is", max_new_tokens=5)
    assert record["input_text"] == f"{SLOT}This is"
    assert record["generated_text"].startswith(f"{SLOT}This is")
    (new,) = pipe(
        images=[picture()], text=f"{SLOT}This is", max_new_tokens=5, return_full_text=False
    )
    assert record["generated_text"] == f"{SLOT}This is" + new["generated_text"]
    both = pipe(images=[picture(1), picture(2)], text=[f"{SLOT}A", f"{SLOT}B"], max_new_tokens=5)
    assert [each["input_text"] for each in both] == [f"{SLOT}A", f"{SLOT}B"]
    assert [
        [each["input_text"] for each in row] for row in pipe(text=["A", "B"], max_new_tokens=5)
    ] == [["A"], ["B"]]


def test_pairs_iterators_and_datasets(pipe: Any) -> None:
    """pipe({"images": …, "text": …}), a list of them,
    a generator and a dataset stand in the documentation."""
    pair = {"images": picture(), "text": f"{SLOT}This is"}
    alone = pipe(images=picture(), text=f"{SLOT}This is", max_new_tokens=5)
    hello = pipe(chat("Hello"), max_new_tokens=5)
    assert pipe(pair, max_new_tokens=5) == alone
    assert pipe([pair, pair], max_new_tokens=5) == [alone, alone]
    assert list(pipe((each for each in (pair, chat("Hello"))), max_new_tokens=5)) == [alone, hello]

    class Chats(torch.utils.data.Dataset[Any]):
        def __getitem__(self, index: int) -> Any:
            return [chat("Hello"), pair][index]

    assert list(pipe(Chats(), max_new_tokens=5)) == [hello, alone]
    with pytest.raises(UsageError, match="label"):
        pipe({**pair, "label": "x"})
    with pytest.raises(UsageError, match="the only input"):
        pipe(images=picture(), text=pair)


def test_sizes_and_direct_options(pipe: Any) -> None:
    """min_pixels and max_pixels are the processor's options that this pipeline is given;
    do_sample is generate's."""
    (small,) = pipe(chat("?", picture()), max_new_tokens=2, return_tensors=True, max_pixels=28 * 28)
    (large,) = pipe(
        chat("?", picture()), max_new_tokens=2, return_tensors=True, min_pixels=112 * 112
    )
    assert len(small["generated_token_ids"]) < len(large["generated_token_ids"])
    options = {"do_sample": True, "temperature": 2.0, "seed": 1}
    direct = pipe(chat("?"), max_new_tokens=4, **options)
    assert direct == pipe(chat("?"), max_new_tokens=4, generate_kwargs=options)
    assert pipe.device == pipe.model.device


def test_generation_options(pipe: Any) -> None:
    """generate_kwargs reach the model; several sequences give several records; ids on demand."""
    messages = chat("Hello")
    kwargs = {
        "do_sample": True,
        "temperature": 2.0,
        "seed": 1,
        "num_return_sequences": 3,
        "max_new_tokens": 4,
    }
    records = pipe(text=messages, generate_kwargs=kwargs, return_full_text=False)
    assert len({record["generated_text"] for record in records}) > 1
    assert len(records) == 3
    (record,) = pipe(text=messages, max_new_tokens=4, return_tensors=True)
    assert record.keys() == {"input_text", "generated_token_ids"}
    (full,) = pipe(text=messages, max_new_tokens=4, return_full_text=False)
    assert (
        pipe.tokenizer.decode(record["generated_token_ids"][-4:].tolist()) == full["generated_text"]
    )
    stop = full["generated_text"][:2]
    (stopped,) = pipe(text=messages, max_new_tokens=4, stop_sequence=stop, return_full_text=False)
    assert len(stopped["generated_text"]) < len(full["generated_text"])


def test_loaded_model_and_processor(tiny_folder: Path) -> None:
    """pipeline(model=model, processor=processor) must not load anything again."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_folder)
    processor = AutoProcessor.from_pretrained(tiny_folder)
    pipe = pipeline("image-text-to-text", model=model, processor=processor)
    assert pipe.model is model
    assert pipe.processor is processor
    with pytest.raises(UsageError, match="processor"):
        pipeline("image-text-to-text", model=model)


def test_device_numbers(tiny_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """device=0 stands in every example;
    on a machine without CUDA it must run, and say that it is the CPU."""
    pipe = pipeline("image-text-to-text", model=tiny_folder, device=0)
    if not torch.cuda.is_available():
        assert pipe.model.device.type == "cpu"
        assert "device=0" in capsys.readouterr().err
    assert pipeline("image-text-to-text", model=tiny_folder, device=-1).model.device.type == "cpu"


def test_misuse_is_refused(pipe: Any, tiny_folder: Path) -> None:
    """Nothing is ignored: another task, options twice or unknown, media in two places."""
    with pytest.raises(UsageError, match="image-text-to-text"):
        pipeline("text-generation", model=tiny_folder)
    with pytest.raises(UsageError, match="device_map"):
        pipeline("image-text-to-text", model=tiny_folder, device="cpu", device_map="auto")
    with pytest.raises(UsageError, match="twice"):
        pipe(text=chat("?"), max_new_tokens=3, generate_kwargs={"max_new_tokens": 4})
    with pytest.raises(OptionError, match="temprature"):
        pipe(text=chat("?"), generate_kwargs={"temprature": 1.0})
    with pytest.raises(UsageError, match="images"):
        pipe(images=[picture()], text=chat("?"))
    with pytest.raises(UsageError, match="exclude"):
        pipe(text=chat("?"), return_full_text=False, return_tensors=True)
    with pytest.raises(UsageError, match="text"):
        pipe(images=[picture()])
    for empty in ("", [], [""], picture()):
        with pytest.raises(UsageError, match="text"):
            pipe(text=empty)
    with pytest.raises(OptionError, match="temprature"):
        pipe(text=chat("?"), temprature=1.0)
    with pytest.raises(UsageError, match="batch_size"):
        pipe(text=chat("?"), batch_size=0)
