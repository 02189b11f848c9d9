"""The short way: load, ask, stream, chat, and everything that an answer carries."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import qwen25vl
from qwen25vl.answer import Answer, Stopwatch, Timings, Usage
from qwen25vl.errors import CheckpointError, MessageError, OptionError, UsageError
from qwen25vl.inputs import MediaItem
from qwen25vl.vlm import VisionLanguageModel

SHORT = {"max_new_tokens": 6, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def vlm(tiny_folder: Path) -> VisionLanguageModel:
    return qwen25vl.load(tiny_folder)


@pytest.fixture(scope="module")
def picture_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("pictures") / "scene.png"
    Image.effect_noise((100, 60), 80).convert("RGB").save(path)
    return path


def test_ask_equals_the_long_way(vlm: VisionLanguageModel, picture_path: Path) -> None:
    """The short way must be the long way and nothing else:
    template, pictures, options, decoding."""
    answer = vlm.ask("What is this?", [picture_path], system="Be brief.", **SHORT)
    messages = [
        {"role": "system", "content": "Be brief."},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": str(picture_path)},
                {"type": "text", "text": "What is this?"},
            ],
        },
    ]
    inputs = vlm.processor.apply_chat_template(
        messages, add_generation_prompt=True, tokenize=True, return_dict=True
    )
    ids = vlm.model.generate(**inputs, **SHORT)[0, inputs.input_ids.shape[1] :]
    assert answer.text == vlm.processor.decode(ids, skip_special_tokens=True) == str(answer)
    assert answer.usage == Usage(inputs.input_ids.shape[1], 8, 6)
    assert answer.finish_reason == "length"
    assert [(item.original_size, item.model_size) for item in answer.media] == [
        ((60, 100), (56, 112))
    ]
    assert vlm.ask(messages, **SHORT).text == answer.text


def test_one_source_need_not_stand_in_a_list(vlm: VisionLanguageModel, picture_path: Path) -> None:
    """images="photo.jpg" must be one picture, not nine with one-letter names."""
    one = vlm.ask("?", picture_path, **SHORT)
    assert one.text == vlm.ask("?", [str(picture_path)], **SHORT).text
    with Image.open(picture_path) as picture:
        assert vlm.ask("?", picture, **SHORT).text == one.text


def test_videos_and_their_rate(vlm: VisionLanguageModel) -> None:
    """fps must reach the video; a list of pictures inside `videos` is one video."""
    frames = [Image.new("RGB", (56, 56), (40 * index, 0, 0)) for index in range(4)]
    answer = vlm.ask("?", videos=[frames], **SHORT)
    (item,) = answer.media
    assert (item.kind, item.num_frames) == ("video", 4)
    assert answer.usage.visual_tokens == item.num_tokens


def test_stream_joins_to_the_answer(vlm: VisionLanguageModel, picture_path: Path) -> None:
    """What was streamed and what `answer` says must be the same text, at every moment."""
    stream = vlm.stream("What is this?", picture_path, **SHORT)
    text = ""
    for chunk in stream:
        text += chunk.text
        assert stream.answer.text == text
        assert stream.answer.finish_reason == chunk.finish_reason
    assert stream.answer.text == vlm.ask("What is this?", picture_path, **SHORT).text
    assert stream.answer.usage.completion_tokens == 6


def test_options_reach_the_model_and_unknown_ones_are_errors(vlm: VisionLanguageModel) -> None:
    """An option that is accepted and ignored is worse than one that is refused."""
    sampled = [
        vlm.ask("?", temperature=2.0, seed=seed, max_new_tokens=8).text for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]
    for bad in ({"temprature": 1.0}, {"num_return_sequences": 2}, {"output_logits": True}):
        with pytest.raises(OptionError, match=next(iter(bad))):
            vlm.ask("?", **bad)  # type: ignore[typeddict-item]
    with pytest.raises(UsageError, match="top_p"):
        vlm.ask("?", top_p=1.5)
    with pytest.raises(UsageError, match="messages"):
        vlm.ask([{"role": "user", "content": "?"}], images=["x.png"])


def test_sizes_of_one_question(vlm: VisionLanguageModel, picture_path: Path) -> None:
    """max_pixels of a question holds for it alone and shows in the answer's sizes."""
    small = vlm.ask("?", picture_path, max_pixels=56 * 56, **SHORT)
    assert small.media[0].model_size[0] * small.media[0].model_size[1] <= 56 * 56
    assert vlm.ask("?", picture_path, **SHORT).media[0].model_size == (56, 112)


def test_progress_and_timings(tiny_folder: Path, picture_path: Path) -> None:
    """Whoever waits must see that something happens, and afterwards where the time went."""
    reports: list[tuple[str, int, int]] = []
    vlm = qwen25vl.load(tiny_folder, progress=lambda *report: reports.append(report))
    answer = vlm.ask("?", picture_path, **SHORT)
    stages = list(dict.fromkeys(stage for stage, _, _ in reports))
    assert stages == ["load", "images", "prefill", "decode"]
    assert all(0 < done <= total for _, done, total in reports)
    timings = answer.timings
    assert (
        min(
            timings.preprocess,
            timings.vision,
            timings.prefill,
            timings.decode,
            timings.tokens_per_second,
        )
        > 0
    )


def test_the_callers_own_time_is_not_the_models() -> None:
    """A slow terminal between two chunks must not make the model look slow."""
    watch = Stopwatch()
    watch.last -= 100
    watch.resume()
    watch.report("decode", 1, 9)
    watch.last -= 50
    watch.resume()
    watch.report("decode", 2, 9)
    assert watch.timings(2).decode < 1
    assert watch.timings(2).prefill < 1


def test_a_conversation_remembers(vlm: VisionLanguageModel, picture_path: Path) -> None:
    """Every turn is answered from the whole conversation, pictures of the middle included."""
    talk = vlm.chat("Be brief.")
    first = talk.ask("Hello", **SHORT)
    second = talk.ask("What is this?", picture_path, **SHORT)
    third = talk.ask("Are you sure?", **SHORT)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}]},
        {"role": "assistant", "content": first.text},
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture_path},
                {"type": "text", "text": "What is this?"},
            ],
        },
        {"role": "assistant", "content": second.text},
        {"role": "user", "content": [{"type": "text", "text": "Are you sure?"}]},
    ]
    assert talk.messages[:-1] == messages
    assert third.text == vlm.ask(messages, **SHORT).text
    talk.reset()
    assert talk.ask("Hello", **SHORT).text == first.text


def test_an_interrupted_turn_leaves_the_conversation_usable(vlm: VisionLanguageModel) -> None:
    """After Ctrl-C two user messages stood in a row, or half an answer was said twice."""
    talk = vlm.chat()
    next(talk.stream("Say something long", max_new_tokens=40))
    part = talk.turns[-1][1].text
    answer = talk.ask("Hello", **SHORT)
    roles = [message["role"] for message in talk.messages]
    assert roles == (["user", "assistant"] if part else []) + ["user", "assistant"]
    assert talk.messages[-1]["content"] == answer.text
    assert not list(talk.turns[0][1])
    with pytest.raises(UsageError):
        talk.ask("?", top_p=7.0)
    assert len(talk.messages) == len(roles)


# --- begun answers, and answers that go back
# ---------------------------------------------------------------------


BEGUN = [{"role": "user", "content": "Count to 3."}, {"role": "assistant", "content": "One, two,"}]


def test_a_begun_answer_is_continued(vlm: VisionLanguageModel) -> None:
    """The begun answer was closed, and the model began another one after it."""
    ready = {"tokenize": True, "return_dict": True}
    begun = vlm.processor.apply_chat_template(BEGUN, continue_final_message=True, **ready)
    closed = vlm.processor.apply_chat_template(BEGUN, add_generation_prompt=True, **ready)
    assert (begun.input_ids.shape[1], closed.input_ids.shape[1]) == (28, 33)
    for options, inputs in (({}, begun), ({"continue_final_message": True}, begun),
                            ({"continue_final_message": False}, closed)):  # fmt: skip
        answer = vlm.ask(BEGUN, **options, **SHORT)  # type: ignore[arg-type]
        ids = vlm.model.generate(**inputs, **SHORT)[0, inputs.input_ids.shape[1] :]
        assert answer.usage.prompt_tokens == inputs.input_ids.shape[1]
        assert answer.text == vlm.processor.decode(ids, skip_special_tokens=True)
        stream = vlm.stream(BEGUN, **options, **SHORT)  # type: ignore[arg-type]
        assert "".join(chunk.text for chunk in stream) == answer.text


@pytest.mark.parametrize(
    "last", [None, "", "two \n", ["two"], [{"type": "output_text", "text": "two"}]]
)
def test_begun_answers_in_other_shapes(vlm: VisionLanguageModel, last: object) -> None:
    """The default must not depend on how a client spells the assistant's message."""
    messages = [BEGUN[0], {"role": "assistant", "content": last, "refusal": None}]
    text = vlm.processor.apply_chat_template(messages, continue_final_message=True)
    ids = vlm.processor(text=text).input_ids
    assert vlm.ask(messages, max_new_tokens=1).usage.prompt_tokens == ids.shape[1]


def test_what_is_no_begun_answer(vlm: VisionLanguageModel) -> None:
    """A picture can not be written on; a conversation that ends with a user's words is answered."""
    picture = {"type": "image", "image": Image.new("RGB", (56, 56))}
    with pytest.raises(MessageError, match="ends with text"):
        vlm.ask([BEGUN[0], {"role": "assistant", "content": ["Here:", picture]}], **SHORT)
    asked = vlm.processor.apply_chat_template(BEGUN[:1], tokenize=True, add_generation_prompt=True)
    assert vlm.ask(BEGUN[:1], max_new_tokens=1).usage.prompt_tokens == len(asked[0])


def test_no_pictures_may_be_none(vlm: VisionLanguageModel) -> None:
    """A form without a picture gives None, which was taken for a picture without content."""
    text = vlm.ask("hi", **SHORT).text
    assert vlm.ask("hi", None, **SHORT).text == text
    assert vlm.ask("hi", images=None, videos=None, **SHORT).text == text
    talk = vlm.chat()
    assert talk.ask("hi", None, None, **SHORT).text == text


def test_numbers_made_by_numpy(vlm: VisionLanguageModel, picture_path: Path) -> None:
    """A length or a size computed with numpy was refused as no whole number."""
    answer = vlm.ask("?", picture_path, max_pixels=np.int64(56 * 56), max_new_tokens=np.int64(3))
    assert answer.usage.completion_tokens <= 3
    assert answer.media[0].model_size == (28, 56)
    with pytest.raises(UsageError, match="max_new_tokens is True"):
        vlm.ask("?", max_new_tokens=True)


WRITTEN = (
    '<tool_call>\n{"name": "tap", "arguments": {"at": [5, 6]}}\n</tool_call>',
    "See <|object_ref_start|>dog<|object_ref_end|><|box_start|>(0,0),(56,28)<|box_end|>.",
    "<|quad_start|>(0,0),(1,0),(1,1),(0,1)<|quad_end|>",
)


@pytest.mark.parametrize("written", WRITTEN)
def test_an_answer_goes_back_as_the_tokens_that_it_was(
    vlm: VisionLanguageModel, monkeypatch: pytest.MonkeyPatch, written: str
) -> None:
    """A call came back as the letters of its name, and a box without its marks."""
    tokenizer = vlm.processor.tokenizer
    ids = [*tokenizer.encode(written, control=True), tokenizer.eos_token_id]

    def chunks(*_: object, **__: object) -> Iterator[object]:
        from qwen25vl.engine.outbox import Chunk

        decoder = tokenizer.stream_decoder()
        return iter([Chunk(decoder.push(token), token, 0.0, 0, None) for token in ids])

    talk = vlm.chat("Answer with <tool_call>.")
    monkeypatch.setattr(type(vlm.model), "stream", chunks)
    talk.ask("<tool_call>?")
    assert talk.messages[-1] == {"role": "assistant", "content": written}
    prompt = vlm.processor.apply_chat_template(talk.messages, tokenize=True)[0]
    assert prompt[-len(ids) - 1 : -1] == ids
    assert prompt.count(151657) == 1 + ids.count(151657)


def test_two_questions_at_once(vlm: VisionLanguageModel, picture_path: Path) -> None:
    """Two streams taken in turns must not see each other's cache."""
    alone = [vlm.ask("?", picture_path, **SHORT).text, vlm.ask("Hello", **SHORT).text]
    streams = [vlm.stream("?", picture_path, **SHORT), vlm.stream("Hello", **SHORT)]
    texts = ["", ""]
    for _ in range(6):
        for index, stream in enumerate(streams):
            texts[index] += next(stream).text
    assert texts == alone


def test_without_a_name_the_demo_model_loads(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """load() must not reach for the network, and say so where the demo model was not installed."""
    monkeypatch.setattr("qwen25vl.vlm.DEMO_FOLDER", tiny_folder)
    assert qwen25vl.load().ask("Hello", **SHORT).finish_reason
    monkeypatch.setattr("qwen25vl.vlm.DEMO_FOLDER", tmp_path)
    with pytest.raises(CheckpointError, match="demo model"):
        qwen25vl.load()


# --- places in answers
# -----------------------------------------------------------------------------------------


def made_answer(
    text: str, media: tuple[MediaItem, ...], sources: tuple[object, ...] = ()
) -> Answer:
    return Answer(text, "stop", Usage(1, 1, 1), Timings(0, 0, 0, 0, 0), media, text, sources)


ITEM = MediaItem("image", "a.png", 0, original_size=(60, 100), model_size=(56, 112), num_tokens=8)
TEXT = '[{"bbox_2d": [0, 0, 56, 28], "label": "left"}, {"point_2d": [112, 56], "label": "corner"}]'


def test_boxes_mean_the_last_picture_unless_said_otherwise() -> None:
    """The model does not say which picture it means; whoever knows better can say so."""
    wide = replace(ITEM, original_size=(60, 200))
    video = replace(ITEM, kind="video")
    answer = made_answer(TEXT, (wide, ITEM, video))
    assert [(box.picture, box.x2, box.y2) for box in answer.boxes] == [(1, 50, 30)]
    assert [(point.picture, point.x, point.y) for point in answer.points] == [(1, 100, 60)]
    assert [(box.picture, box.x2) for box in answer.find_boxes(0)] == [(0, 100)]
    assert [box.picture for box in made_answer(TEXT, (video,)).boxes] == [0]
    assert made_answer(TEXT, ()).boxes == made_answer(TEXT, ()).points == []
    with pytest.raises(UsageError, match="picture 3"):
        answer.find_boxes(3)


def test_boxes_of_a_photo_that_lies_on_its_side(vlm: VisionLanguageModel, tmp_path: Path) -> None:
    """They are in the picture as it is shown, and drawn on it so;
    width and height are swapped on disk."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 60)).save(tmp_path / "photo.jpg", exif=exif)
    answer = vlm.ask("?", tmp_path / "photo.jpg", **SHORT)
    assert answer.media[0].original_size == (100, 60)
    assert answer.draw().size == (60, 100)


def test_drawing_takes_the_picture_of_the_question(picture_path: Path) -> None:
    """The overlay belongs on the original;
    a picture of another size would get it in the wrong place."""
    drawn = made_answer(TEXT, (ITEM,), (picture_path,)).draw()
    assert drawn.size == (100, 60)
    with Image.open(picture_path) as original:
        assert drawn.tobytes() != original.tobytes()
        assert made_answer("none", (ITEM,), (original,)).draw().tobytes() == original.tobytes()
    with pytest.raises(UsageError, match="50×50"):
        made_answer(TEXT, (ITEM,), (picture_path,)).draw(Image.new("RGB", (50, 50)))
    with pytest.raises(UsageError, match="video"):
        made_answer(TEXT, (replace(ITEM, kind="video"),), ("clip.mp4",)).draw()
    with pytest.raises(UsageError, match="no picture"):
        made_answer(TEXT, ()).draw()


def test_boxes_of_a_streamed_answer_use_the_marked_text(
    vlm: VisionLanguageModel, picture_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Boxes written with special tokens vanish from the text that is shown;
    they must still be found."""
    marked = "<|object_ref_start|>dog<|object_ref_end|><|box_start|>(0,0),(56,28)<|box_end|>"
    ids = vlm.processor.tokenizer.encode(marked, control=True)

    def chunks(*_: object, **__: object) -> Iterator[object]:
        from qwen25vl.engine.outbox import Chunk

        return iter([Chunk("", token, 0.0, 0, None) for token in ids])

    monkeypatch.setattr(type(vlm.model), "stream", chunks)
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": picture_path}, {"type": "text", "text": "?"}],
        }
    ]
    answer = vlm.ask(messages)
    assert [(box.label, box.x2, box.y2) for box in answer.boxes] == [("dog", 50, 30)]
    assert answer.draw().size == (100, 60)
    assert json.dumps(answer.boxes[0].pixels) == "[0, 0, 50, 30]"


@pytest.mark.parametrize(
    "wrong", [b"What is this?", bytearray(b"x"), None, 5, {"role": "user", "content": "x"}]
)
def test_a_question_is_text_or_messages(vlm: VisionLanguageModel, wrong: object) -> None:
    """Bytes were taken for messages, each byte one of them."""
    with pytest.raises(UsageError, match=r"the question is \w+; expected a text"):
        vlm.ask(wrong, **SHORT)
    if isinstance(wrong, bytes | int):
        with pytest.raises(UsageError, match=r"system is \w+; expected a text"):
            vlm.ask("?", system=wrong, **SHORT)
