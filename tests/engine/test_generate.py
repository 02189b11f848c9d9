"""The loop and its twins: batched and single, chunked and whole, streamed and collected, two at
once."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from scenes import Prompt, mixed_prompts, model_inputs

from qwen25vl import GenerationConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from qwen25vl.engine.generate import stream
from qwen25vl.engine.outbox import Chunk
from qwen25vl.errors import (
    ContextLengthError,
    MessageError,
    NumericsError,
    OptionError,
    OutOfMemoryError,
    UsageError,
)
from qwen25vl.inputs import MediaItem, ModelInputs

PAD = 151643


class Words:
    """A tokenizer whose token 12 is the word "<12>", so that every text can be foretold."""

    control_ids: dict[str, int] = {"<|im_end|>": 151645}  # noqa: RUF012

    def stream_decoder(self) -> "Words":
        return self

    def push(self, token_id: int) -> str:
        return f"<{token_id}>"

    def finish(self) -> str:
        return ""


@pytest.fixture(scope="module")
def model(untied_folder: Path) -> Qwen2_5_VLForConditionalGeneration:
    """Untied, because a tied random model says its last token again and again."""
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_pretrained(untied_folder))
    model.load_state_dict(load_file(untied_folder / "model.safetensors"))
    model.generation_config = GenerationConfig(
        eos_token_id=(151645,), pad_token_id=PAD, repetition_penalty=1.05
    )
    return model.eval()


def picture() -> Prompt:
    return Prompt().text(11, 12).image(10, 14).text(13)


def answer(
    model: Qwen2_5_VLForConditionalGeneration, *prompts: Prompt, pixel_seed: int = 0, **options: Any
) -> Any:
    """The new tokens only, [S][new], as lists."""
    inputs = model_inputs(*prompts, seed=pixel_seed)
    return model.generate(**inputs, **options)[:, inputs["input_ids"].shape[1] :].tolist()


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(
    "options", [{}, {"temperature": 1.0, "top_p": 0.95, "seed": 7}], ids=["greedy", "sampled"]
)
def test_batch_gives_what_its_rows_give_alone(
    model: Qwen2_5_VLForConditionalGeneration, side: str, options: dict[str, Any]
) -> None:
    """Batch ≠ single is the oldest complaint; here also for sampling, and padding must not count as
    seen tokens."""
    prompts = mixed_prompts()
    inputs = model_inputs(*prompts, padding_side=side)
    together = model.generate(**inputs, max_new_tokens=12, **options)
    assert torch.equal(together[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    for row, prompt in enumerate(prompts):
        assert (
            answer(model, prompt, pixel_seed=row, max_new_tokens=12, **options)[0]
            == together[row, -12:].tolist()
        )


def test_cached_steps_give_what_a_whole_pass_gives(
    model: Qwen2_5_VLForConditionalGeneration,
) -> None:
    """Positions after a picture and a clip: the logits of every step against one uncached pass over
    the answer."""
    for prompt in mixed_prompts():
        inputs = model_inputs(prompt)
        out = model.generate(
            **inputs, max_new_tokens=8, return_dict_in_generate=True, output_logits=True
        )
        with torch.no_grad():
            inputs |= {"input_ids": out.sequences, "attention_mask": torch.ones_like(out.sequences)}
            whole = model(**inputs).logits[0, -9:-1]
        stepwise = torch.cat(out.logits)
        assert (stepwise - whole).abs().max() <= 1e-4 * whole.abs().max()


def test_chunked_prefill_gives_what_a_whole_one_gives(
    model: Qwen2_5_VLForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut in the middle of a picture and between sequences."""
    inputs = model_inputs(*mixed_prompts())
    options = {"max_new_tokens": 6, "return_dict_in_generate": True, "output_logits": True}
    whole = model.generate(**inputs, **options)
    monkeypatch.setattr("qwen25vl.engine.engine.MAX_TOKENS_PER_STEP", 16)
    stages: list[tuple[str, int, int]] = []
    cut = model.generate(**inputs, **options, progress=lambda *report: stages.append(report))
    assert torch.equal(cut.sequences, whole.sequences)
    assert torch.allclose(torch.stack(cut.logits), torch.stack(whole.logits), atol=1e-4)
    total = int(inputs["attention_mask"].sum())
    reads = [done for stage, done, of in stages if stage == "prefill" and of == total]
    assert len(reads) > 8
    assert reads[-1] == total
    assert {stage for stage, _, _ in stages} == {"images", "videos", "prefill", "decode"}
    assert stages[-1] == ("decode", 6, 6)


def test_pictures_are_encoded_once_for_several_answers(
    model: Qwen2_5_VLForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Repeating flat pixel_values per answer mixed the pictures of a batch."""
    calls = []
    encode = model.visual.encode_in_parts
    monkeypatch.setattr(
        model.visual, "encode_in_parts", lambda *args: calls.append(args) or encode(*args)
    )
    options = {"do_sample": True, "seed": 3, "max_new_tokens": 8, "num_return_sequences": 3}
    answers = answer(model, picture(), Prompt().text(5).image(4, 4).text(6), **options)
    assert len(calls) == 2  # two pictures, each alone where no kernels serve
    assert len({tuple(tokens) for tokens in answers}) == 6
    assert answers[:3] == answer(model, picture(), **options)
    assert answers[3:] == answer(
        model, Prompt().text(5).image(4, 4).text(6), pixel_seed=1, **options
    )
    assert answers[:1] == answer(model, picture(), **{**options, "num_return_sequences": 1})


def test_finished_rows_leave_the_step(
    model: Qwen2_5_VLForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A finished answer is padded, and costs nothing while the others go on."""
    prompts = mixed_prompts()[:3]
    free = answer(model, *prompts, max_new_tokens=10)
    sizes = []
    run = model.model.language_model.run
    monkeypatch.setattr(
        model.model.language_model, "run", lambda *args: sizes.append(len(args[2])) or run(*args)
    )
    end = free[1][3]
    assert end not in free[0] + free[2]
    inputs = model_inputs(*prompts)
    out = model.generate(
        **inputs,
        max_new_tokens=10,
        eos_token_id=end,
        return_dict_in_generate=True,
        output_logits=True,
    )
    first = free[1].index(end)
    assert out.sequences[1, -10:].tolist() == free[1][: first + 1] + [PAD] * (9 - first)
    assert out.sequences[0, -10:].tolist() == free[0]
    assert out.finish_reasons == ("length", "stop", "length")
    assert sizes == [3] * (first + 1) + [2] * (9 - first)
    assert not out.logits[-1][1].any()
    assert out.logits[-1][0].any()


def test_min_new_tokens_bars_the_end(model: Qwen2_5_VLForConditionalGeneration) -> None:
    free = answer(model, picture(), max_new_tokens=8)[0]
    assert len(answer(model, picture(), max_new_tokens=8, eos_token_id=free[0])[0]) == 1
    barred = answer(model, picture(), max_new_tokens=8, min_new_tokens=5, eos_token_id=free[0])[0]
    assert free[0] not in barred[:5]


def chunks(
    model: Qwen2_5_VLForConditionalGeneration, prompt: Prompt, **options: Any
) -> Iterator[Chunk]:
    inputs = model_inputs(prompt)
    return model.stream(ModelInputs(**inputs), Words(), **options)


def test_stream_gives_what_generate_gives(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """With the log-probability of the raw logits, though a penalty chose the token."""
    inputs = model_inputs(picture())
    out = model.generate(
        **inputs, max_new_tokens=6, return_dict_in_generate=True, output_logits=True
    )
    streamed = list(chunks(model, picture(), max_new_tokens=6))
    assert [c.token for c in streamed] == out.sequences[0, -6:].tolist()
    assert [c.finish_reason for c in streamed] == [None] * 5 + ["length"]
    assert "".join(c.text for c in streamed) == "".join(f"<{c.token}>" for c in streamed)
    for chunk, logits in zip(streamed, out.logits, strict=True):
        assert chunk.logprob == pytest.approx(
            logits[0].log_softmax(-1)[chunk.token].item(), abs=1e-4
        )


def test_stop_strings(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Across two tokens: the ids keep it, as in transformers; the streamed text ends before it."""
    free = answer(model, picture(), max_new_tokens=6)[0]
    stop = f"{str(free[2])[-1]}><{str(free[3])[0]}"
    ids = answer(model, picture(), max_new_tokens=6, stop_strings=[stop], tokenizer=Words())[0]
    assert ids == free[:4]
    streamed = list(chunks(model, picture(), max_new_tokens=6, stop_strings=stop))
    text = "".join(f"<{token}>" for token in free)
    assert "".join(c.text for c in streamed) == text[: text.index(stop)]
    assert streamed[-1].finish_reason == "stop"
    assert [chunk.met for chunk in streamed] == [None] * (len(streamed) - 1) + [stop]


def test_a_control_token_may_be_a_stop_string(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Its text is not part of the text, so it has to be met as a token."""
    free = answer(model, picture(), max_new_tokens=6)[0]

    class Control(Words):
        control_ids = {"<|end|>": free[2]}  # noqa: RUF012

    ids = answer(model, picture(), max_new_tokens=6, stop_strings="<|end|>", tokenizer=Control())[0]
    assert ids == free[:3]


def test_endless_repetition_ends(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """A reward for repeating drives the model into a loop; it must not fill the context with it."""
    options = {"repetition_penalty": 0.01, "max_new_tokens": 200}
    assert len(answer(model, picture(), **options)[0]) == 200
    streamed = list(chunks(model, picture(), max_repeated_tokens=40, **options))
    assert streamed[-1].finish_reason == "repetition"
    assert 40 < len(streamed) < 120


def test_two_interleaved_streams(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """State on the model or its modules would mix them: other prompts, pictures and lengths, taken
    in turns."""
    one, two = mixed_prompts()[4], mixed_prompts()[1]
    alone = [[c.token for c in chunks(model, p, max_new_tokens=10)] for p in (one, two)]
    streams = [chunks(model, p, max_new_tokens=10) for p in (one, two)]
    turns = [[c.token for c in pair] for pair in zip(*streams, strict=True)]
    assert [list(tokens) for tokens in zip(*turns, strict=True)] == alone


def test_inference_mode_holds_inside_only(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Between two chunks the caller's code must be able to train; what generate returns is a common
    tensor."""
    for _ in chunks(model, picture(), max_new_tokens=3):
        assert not torch.is_inference_mode_enabled()
        assert torch.is_grad_enabled()
        weight = torch.ones(1, requires_grad=True)
        (weight * 2).backward()
    out = model.generate(
        **model_inputs(picture()),
        max_new_tokens=2,
        return_dict_in_generate=True,
        output_logits=True,
    )
    assert not out.sequences.is_inference()
    assert not out.logits[0].is_inference()


def test_an_interrupted_stream_leaves_the_model_usable(
    model: Qwen2_5_VLForConditionalGeneration,
) -> None:
    """Ctrl-C between tokens, in the middle of a layer, and a stream that is simply dropped."""
    wanted = answer(model, picture(), max_new_tokens=5)
    dropped = chunks(model, picture(), max_new_tokens=5)
    next(dropped)
    dropped.close()

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = model.model.language_model.layers[1].register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        answer(model, picture(), max_new_tokens=5)
    handle.remove()
    assert not torch.is_inference_mode_enabled()
    assert answer(model, picture(), max_new_tokens=5) == wanted


class Recorder:
    def __init__(self) -> None:
        self.values: list[torch.Tensor] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        self.values.append(value)

    def end(self) -> None:
        self.ended += 1


def test_streamer(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """The ecosystem's protocol: prompt, then [S] per step, then the end, which comes after an error
    too."""
    recorder, inputs = Recorder(), model_inputs(*mixed_prompts()[:2])
    ids = model.generate(**inputs, max_new_tokens=4, streamer=recorder)
    assert torch.equal(recorder.values[0], inputs["input_ids"])
    assert torch.equal(torch.stack(recorder.values[1:], dim=1), ids[:, -4:])
    assert recorder.ended == 1
    with pytest.raises(UsageError):
        model.generate(**inputs, stop_strings="x", streamer=recorder)
    assert recorder.ended == 2


def test_transformers_text_streamer(
    model: Qwen2_5_VLForConditionalGeneration, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import TextStreamer

    class Numbers:
        def decode(self, ids: list[int]) -> str:
            return "".join(f"{i} " for i in ids)

    inputs = model_inputs(picture())
    ids = model.generate(
        **inputs, max_new_tokens=3, streamer=TextStreamer(Numbers(), skip_prompt=True)
    )
    assert capsys.readouterr().out.split() == [str(i) for i in ids[0, -3:].tolist()]


def test_the_context_ends_an_answer(model: Qwen2_5_VLForConditionalGeneration) -> None:
    room = 4
    prompt = Prompt().text(*[7, 8] * ((4096 - room - 1) // 2), 9)
    assert len(prompt.ids) == 4096 - room
    streamed = list(chunks(model, prompt, max_new_tokens=50))
    assert [c.finish_reason for c in streamed] == [None] * (room - 1) + ["length"]


def test_a_prompt_longer_than_the_context(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """The message names what costs most, by the names that the processor knows or by number."""
    prompt = Prompt().image(4, 4).text(1).image(120, 140).text(2).video(2, 4, 4)
    short = Prompt().text(1)
    with pytest.raises(
        ContextLengthError,
        match=r"prompt 2 of 2 has 4221 tokens \(4212 visual, 9 text\).*holds 4096",
    ) as e:
        answer(model, short, prompt)
    assert str(e.value).endswith("; picture 2 takes 4200; video 1 takes 8; picture 1 takes 4")
    media = tuple(
        MediaItem("image", name, 1, (9, 9), (28, 28), tokens)
        for name, tokens in (("a.png", 4), ("b.png", 4200))
    )
    inputs = ModelInputs(**model_inputs(short, prompt), media=media)
    with pytest.raises(ContextLengthError, match=r"; b\.png takes 4200; a\.png takes 4$"):
        next(stream(model.engine, inputs, GenerationConfig()))


def test_refusals(model: Qwen2_5_VLForConditionalGeneration) -> None:
    """Each a typed error before any work, and the model answers afterwards as before."""
    inputs = model_inputs(picture())
    wanted = answer(model, picture(), max_new_tokens=2)
    with pytest.raises(OptionError, match="temperature"):
        model.generate(**inputs, temprature=1.0)
    with pytest.raises(UsageError, match="tokenizer"):
        model.generate(**inputs, stop_strings=["x"])
    with pytest.raises(UsageError, match="input_ids has shape"):
        model.generate(input_ids=inputs["input_ids"][0])
    with pytest.raises(MessageError, match="0 pictures"):
        model.generate(input_ids=inputs["input_ids"])
    with pytest.raises(UsageError, match="grids"):
        model.generate(input_ids=torch.tensor([[1, 2]]), pixel_values=inputs["pixel_values"])
    with pytest.raises(UsageError, match="row 0"):
        model.generate(input_ids=torch.tensor([[1, 2]]), attention_mask=torch.tensor([[0, 0]]))
    assert answer(model, picture(), max_new_tokens=2) == wanted


def test_overflow_and_lack_of_memory_are_named(
    model: Qwen2_5_VLForConditionalGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = model_inputs(picture())

    def starve(*_: Any) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.\nmore"
        )

    with monkeypatch.context() as patch:
        patch.setattr(model.visual, "encode_in_parts", starve)
        with pytest.raises(
            OutOfMemoryError, match=r"41 prompt tokens and 140 patches.*allocate 9 bytes\.$"
        ):
            model.generate(**inputs)
    with monkeypatch.context() as patch:
        patch.setattr(
            model, "compute_logits", lambda hidden: torch.full((len(hidden), 152064), torch.nan)
        )
        with pytest.raises(NumericsError):
            model.generate(**inputs)
