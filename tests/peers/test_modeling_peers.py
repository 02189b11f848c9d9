"""tests/models/qwen2_5_vl/test_modeling_qwen2_5_vl.py of transformers: the model's own tests, and
the integration tests with small random weights; and the forward's values against transformers'."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image
from tiny_model import (
    NUM_COLUMNS,
    WHOLE,
    ids_with_slots,
    noise,
    picture_inputs,
    randomise,
    token_types,
    video_inputs,
)

from qwen25vl import (
    AutoProcessor,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2_5_VLTextModel,
)
from qwen25vl.errors import UsageError

CLASSES = [Qwen2_5_VLModel, Qwen2_5_VLForConditionalGeneration]
both = pytest.mark.parametrize("model_class", CLASSES)
CAT = Image.effect_noise((84, 56), 90).convert("RGB")
MESSAGES = [
    {
        "role": "user",
        "content": [{"type": "image"}, {"type": "text", "text": "What kind of dog is this?"}],
    }
]


@pytest.fixture
def config() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(**copy.deepcopy(WHOLE))


@pytest.fixture(scope="module")
def pair() -> tuple[Any, Any]:
    """The same random weights in both packages, float32, attention as an equation there."""
    given = copy.deepcopy(WHOLE)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration._from_config(
        transformers.Qwen2_5_VLConfig(**given), attn_implementation="eager"
    ).eval()
    randomise(theirs)
    ours = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**copy.deepcopy(WHOLE))).eval()
    state = {k: v for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    ours.load_state_dict(state)
    return ours, theirs


def close(one: torch.Tensor, two: torch.Tensor) -> bool:
    return bool((one - two).abs().max() <= 1e-4 * two.abs().max().clamp(min=1e-6))


def random_model(model_class: Any, config: Any) -> Any:
    torch.manual_seed(0)
    return model_class(config).eval()


@pytest.mark.parametrize("model_class", [*CLASSES, Qwen2_5_VLTextModel])
def test_initialization(model_class: Any, config: Qwen2_5_VLConfig) -> None:
    """test_modeling_qwen2_5_vl.py::test_initialization: two of the classes kept torch's default,
    whose deviation is 1."""
    config.text_config.initializer_range = config.vision_config.initializer_range = 1e-10
    part = config.text_config if model_class is Qwen2_5_VLTextModel else config
    for name, parameter in model_class(part).named_parameters():
        mean = (parameter.mean() * 1e9).round() / 1e9
        assert mean.item() in (0.0, 1.0), name


@pytest.mark.parametrize("model_class", [*CLASSES, Qwen2_5_VLTextModel])
def test_weights_are_as_wide_as_the_config_says(model_class: Any, config: Qwen2_5_VLConfig) -> None:
    """test_modeling_common.py::test_init_weights: N(0, initializer_range)."""
    config.text_config.initializer_range = 0.05
    part = config.text_config if model_class is Qwen2_5_VLTextModel else config
    weight = random_model(model_class, part).get_input_embeddings().weight
    assert weight.std().item() == pytest.approx(0.05, rel=0.05)
    assert abs(weight.mean().item()) < 0.01


@both
def test_as_many_pictures_as_slots(model_class: Any, config: Qwen2_5_VLConfig) -> None:
    """test_modeling_qwen2_5_vl.py::test_mismatching_num_image_tokens, the matching call."""
    with torch.no_grad():
        assert random_model(model_class, config)(**picture_inputs()) is not None


@both
def test_fewer_pictures_than_slots(model_class: Any, config: Qwen2_5_VLConfig) -> None:
    """test_modeling_qwen2_5_vl.py::test_mismatching_num_image_tokens"""
    inputs = picture_inputs()
    inputs["pixel_values"] = inputs["pixel_values"][-1:]
    inputs["image_grid_thw"] = inputs["image_grid_thw"][-1:]
    with pytest.raises(ValueError, match="1 pictures"):
        random_model(model_class, config)(**inputs)


@both
def test_one_picture_for_two_slots(model_class: Any, config: Qwen2_5_VLConfig) -> None:
    """test_modeling_qwen2_5_vl.py::test_mismatching_num_image_tokens, several rows."""
    inputs = picture_inputs(1)
    ids = inputs.pop("input_ids").repeat(2, 1)
    del inputs["attention_mask"]
    with pytest.raises(ValueError, match="1 pictures"):
        random_model(model_class, config)(input_ids=ids, **inputs)


@both
def test_two_pictures_for_two_slots(model_class: Any, config: Qwen2_5_VLConfig) -> None:
    """test_modeling_qwen2_5_vl.py::test_mismatching_num_image_tokens, and both rows are equal."""
    inputs = {name: torch.cat([value, value]) for name, value in picture_inputs(1).items()}
    with torch.no_grad():
        out = random_model(model_class, config)(**inputs)
    assert torch.equal(out[0][0], out[0][1])


@both
@pytest.mark.parametrize("seconds", [1.0, None], ids=["given", "default"])
def test_video_forward(model_class: Any, config: Qwen2_5_VLConfig, seconds: float | None) -> None:
    """test_modeling_qwen2_5_vl.py::test_video_forward; without second_per_grid_ts a temporal grid
    takes a second."""
    inputs = video_inputs()
    model = random_model(model_class, config)
    with torch.no_grad():
        expected = model(**inputs, second_per_grid_ts=torch.tensor([1.0] * 3))[0]
        given = None if seconds is None else torch.tensor([seconds] * 3)
        assert torch.equal(model(**inputs, second_per_grid_ts=given)[0], expected)


@torch.no_grad()
def test_pictures_give_their_logits(pair: tuple[Any, Any]) -> None:
    """Values of test_mismatching_num_image_tokens's inputs, with the types of newer processors."""
    ours, theirs = pair
    inputs = picture_inputs()
    types = token_types(inputs["input_ids"])
    expected = theirs(**inputs, mm_token_type_ids=types).logits
    assert close(ours(**inputs, mm_token_type_ids=types).logits, expected)
    assert torch.equal(ours(**inputs).logits, ours(**inputs, mm_token_type_ids=types).logits)


@torch.no_grad()
def test_videos_give_their_hidden_states() -> None:
    """test_video_forward's values, under transformers' rule for the text after a clip."""
    given = copy.deepcopy(WHOLE)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**given))
    theirs.eval()
    randomise(theirs)
    ours = Qwen2_5_VLForConditionalGeneration(
        Qwen2_5_VLConfig(**copy.deepcopy(WHOLE)), mrope="hf5"
    ).eval()
    state = {k: v for k, v in theirs.state_dict().items() if k != "lm_head.weight"}
    ours.load_state_dict(state)
    inputs = video_inputs()
    expected = theirs(**inputs, mm_token_type_ids=token_types(inputs["input_ids"])).logits
    assert close(ours(**inputs).logits, expected)


@torch.no_grad()
def test_hidden_states_are_theirs(pair: tuple[Any, Any]) -> None:
    """test_modeling_common.py::test_hidden_states_output, values."""
    ours, theirs = pair
    inputs = picture_inputs()
    types = token_types(inputs["input_ids"])
    expected = theirs(**inputs, mm_token_type_ids=types, output_hidden_states=True).hidden_states
    found = ours(**inputs, output_hidden_states=True).hidden_states
    assert len(found) == len(expected) == 5
    assert all(map(close, found, expected))


@torch.no_grad()
def test_attention_weights_are_theirs(pair: tuple[Any, Any]) -> None:
    """test_modeling_common.py::test_attention_outputs, values; and of a row that is padded."""
    ours, theirs = pair
    ids = torch.randint(6, 99, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    expected = theirs(ids, attention_mask=mask, output_attentions=True).attentions
    found = ours(ids, attention_mask=mask, output_attentions=True).attentions
    assert len(found) == len(expected) == 4
    for one, two in zip(found, expected, strict=True):
        assert close(one[1], two[1])
        assert close(one[0, :, 3:], two[0, :, 3:])
        assert not one[0, :, :3].any()


@torch.no_grad()
def test_attention_weights_of_later_tokens(pair: tuple[Any, Any]) -> None:
    """test_generation_utils.py::_check_attentions_for_generate: all columns so far."""
    ours, theirs = pair
    ids = torch.randint(6, 99, (2, 9), generator=torch.Generator().manual_seed(3))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    kept = ours(ids[:, :6], attention_mask=mask[:, :6]).past_key_values
    rest = ours(ids[:, 6:], attention_mask=mask, past_key_values=kept, output_attentions=True)
    whole = theirs(ids, attention_mask=mask, output_attentions=True).attentions
    assert rest.attentions[0].shape == (2, 4, 3, 9)
    assert all(close(a, b[:, :, 6:]) for a, b in zip(rest.attentions, whole, strict=True))


@torch.no_grad()
def test_image_features(pair: tuple[Any, Any]) -> None:
    """test_modeling_common.py::test_get_image_features_output and …_hidden_states: a tensor for
    each picture, the patches in the same order, before each block."""
    ours, theirs = pair
    grids = torch.tensor([[1, 10, 18], [1, 3, 5]])
    pixels = noise(180 + 15, 1176)
    for model, other in ((ours, theirs), (ours.model, theirs.model)):
        found = model.get_image_features(pixels, grids, output_hidden_states=True)
        expected = other.get_image_features(pixels, grids, output_hidden_states=True)
        assert [len(tokens) for tokens in found.pooler_output] == [180, 15]
        assert all(map(close, found.pooler_output, expected.pooler_output))
        assert close(found.last_hidden_state, expected.last_hidden_state)
        assert len(found.hidden_states) == len(expected.hidden_states) == 3
        assert all(map(close, found.hidden_states, expected.hidden_states))


@torch.no_grad()
def test_video_features(pair: tuple[Any, Any]) -> None:
    """test_modeling_common.py::test_get_video_features_output, and as a tuple."""
    ours, theirs = pair
    grids, pixels = torch.tensor([[2, 10, 9], [1, 2, 2]]), noise(184, 1176)
    expected = theirs.get_video_features(pixels, grids)
    for model in (ours, ours.model):
        found = model.get_video_features(pixels, grids)
        assert all(map(close, found.pooler_output, expected.pooler_output))
        last, tokens = model.get_video_features(pixels, grids, return_dict=False)
        assert close(last, expected.last_hidden_state)
        assert len(tokens) == 2
    with pytest.raises(UsageError, match="video_grid_thw"):
        ours.get_video_features(pixels)


def test_placeholder_mask(pair: tuple[Any, Any]) -> None:
    """modeling_qwen2_5_vl.py::get_placeholder_mask: the slots, found by ids or by embeddings; other
    numbers of features raise."""
    ours, _ = pair
    ids = ids_with_slots(2, width=2)
    embeds = ours.get_input_embeddings()(ids)
    for given in (ids, None):
        images, videos = ours.model.get_placeholder_mask(given, embeds, torch.zeros(4, 32))
        assert images[..., 0].nonzero().tolist() == [[0, 32], [0, 33], [1, 32], [1, 33]]
        assert not videos.any()
    with pytest.raises(ValueError, match="slots for 4 picture tokens, but 3"):
        ours.model.get_placeholder_mask(ids, embeds, torch.zeros(3, 32))
    assert torch.equal(ours.model.find_slots(embeds) == 4, ids == 4)


@torch.no_grad()
def test_embeddings_beside_pixels(pair: tuple[Any, Any]) -> None:
    """test_modeling_common.py::test_inputs_embeds_matches_input_ids, with a picture: by the ids, or
    by the embeddings of the placeholders alone."""
    ours, _ = pair
    inputs = picture_inputs()
    expected = ours(**inputs).logits
    embeds = ours.get_input_embeddings()(inputs["input_ids"])
    assert torch.equal(ours(**inputs, inputs_embeds=embeds).logits, expected)
    ids = inputs.pop("input_ids")
    assert torch.equal(ours(**inputs, inputs_embeds=embeds).logits, expected)
    tokens = ours.get_image_features(inputs["pixel_values"], inputs["image_grid_thw"])
    filled = embeds.clone()
    filled[ids == 4] = torch.cat(tokens.pooler_output)
    del inputs["pixel_values"]
    assert torch.equal(ours(input_ids=ids, inputs_embeds=filled, **inputs).logits, expected)


@torch.no_grad()
def test_rope_index(pair: tuple[Any, Any]) -> None:
    """modeling_qwen2_5_vl.py::get_rope_index: positions and deltas; types that say something else
    than the ids raise."""
    ours, theirs = pair
    ids = ids_with_slots(2, width=4)
    grid = torch.tensor([[1, 2, 2], [1, 1, 4]])
    types = token_types(ids)
    positions, deltas = ours.model.get_rope_index(ids, image_grid_thw=grid, mm_token_type_ids=types)
    their_positions, their_deltas = theirs.model.get_rope_index(ids, types, image_grid_thw=grid)
    assert torch.equal(positions, their_positions)
    assert torch.equal(deltas, their_deltas)
    with pytest.raises(UsageError, match="mm_token_type_ids"):
        ours.model.get_rope_index(ids, image_grid_thw=grid, mm_token_type_ids=types * 2)
    assert ours.model.check_types(ids, None) is None


@torch.no_grad()
def test_rope_deltas_place_later_tokens(pair: tuple[Any, Any]) -> None:
    """modeling_qwen2_5_vl.py::compute_3d_position_ids: tokens after a picture go on at their index
    plus the delta."""
    ours, _ = pair
    inputs = picture_inputs(2)
    out = ours(**inputs)
    later = torch.tensor([[7, 8], [9, 6]])
    twins = [[cache.clone() for cache in out.past_key_values] for _ in range(2)]
    plain = ours(later, past_key_values=twins[0]).logits
    told = ours(later, past_key_values=twins[1], rope_deltas=out.rope_deltas).logits
    assert torch.equal(plain, told)


@torch.no_grad()
def test_cache_position(pair: tuple[Any, Any]) -> None:
    """test_generation_utils.py: columns that go on behind the cache; others raise."""
    ours, _ = pair
    first, rest = torch.tensor([[7, 8, 9]]), torch.tensor([[10]])
    kept = ours(first, cache_position=torch.arange(3)).past_key_values
    with pytest.raises(UsageError, match="cache_position begins at 5"):
        ours(rest, past_key_values=kept, cache_position=torch.tensor([5]))
    ours(rest, past_key_values=kept, cache_position=torch.tensor([3]))
    assert kept.get_seq_length() == 4


@torch.no_grad()
def test_four_streams_of_positions(pair: tuple[Any, Any]) -> None:
    """modeling_qwen2_5_vl.py::forward: position_ids [4, B, L] begin with places in the text."""
    ours, theirs = pair
    ids = torch.tensor([[7, 8, 9]])
    three = torch.tensor([[[0, 3, 5]], [[0, 2, 7]], [[0, 1, 2]]])
    four = torch.cat([torch.arange(3)[None, None], three])
    expected = theirs(ids, position_ids=three).logits
    assert close(ours(ids, position_ids=three).logits, expected)
    assert torch.equal(ours(ids, position_ids=four).logits, ours(ids, position_ids=three).logits)


@pytest.fixture(scope="module")
def tiny(tiny_folder: Path) -> tuple[Any, Any, str]:
    """A checkpoint with the official vocabulary, and the rendered prompt."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_folder, device_map="auto")
    processor = AutoProcessor.from_pretrained(tiny_folder)
    prompt = processor.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    return model, processor, prompt


def test_integration_ids(tiny: tuple[Any, Any, str]) -> None:
    """test_modeling_qwen2_5_vl.py::test_small_model_integration_test: the first ids of the
    prompt."""
    _, processor, prompt = tiny
    ids = processor(text=[prompt], images=[CAT], return_tensors="pt").input_ids[0].tolist()
    system = [151644, 8948, 198, 2610, 525, 264, 10950, 17847, 13, 151645, 198]
    assert ids[:17] == [*system, 151644, 872, 198, 151652, 151655, 151655]


@pytest.mark.parametrize("other", ["same", "smaller picture", "no picture"])
def test_integration_batch(tiny: tuple[Any, Any, str], other: str) -> None:
    """test_modeling_qwen2_5_vl.py::test_small_model_integration_test_batch, …_wo_image and
    …_different_resolutions: each answer is that of the prompt alone."""
    model, processor, prompt = tiny
    texts, pictures = [prompt, prompt], [CAT, CAT]
    if other == "smaller picture":
        pictures = [CAT, CAT.resize((56, 56))]
    if other == "no picture":
        question = [{"role": "user", "content": "Who are you?"}]
        texts[1] = processor.apply_chat_template(question, add_generation_prompt=True)
        pictures = [CAT]

    def answer(texts: list[str], pictures: list[Any]) -> list[list[int]]:
        inputs = processor(text=texts, images=pictures or None, return_tensors="pt")
        inputs = inputs.to(model.device)
        ids = model.generate(**inputs, max_new_tokens=8)
        return ids[:, inputs.input_ids.shape[1] :].tolist()

    alone = [answer([text], [p]) for text, p in zip(texts, pictures, strict=False)]
    if other == "no picture":
        alone.append(answer([texts[1]], []))
    assert answer(texts, pictures) == [ids for each in alone for ids in each]


def test_integration_video(tiny: tuple[Any, Any, str]) -> None:
    """test_modeling_qwen2_5_vl.py::test_small_model_integration_test_with_video: frames as a list
    of pictures."""
    model, processor, _ = tiny
    question = [{"type": "video"}, {"type": "text", "text": "What is shown in this video?"}]
    messages = [{"role": "user", "content": question}]
    prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    frames = [CAT.resize((112, 112))] * 4
    inputs = processor(text=[prompt], videos=[frames], return_tensors="pt")
    assert inputs["video_grid_thw"][0, 0] == 2
    assert model.generate(**inputs, max_new_tokens=3).shape[1] == inputs.input_ids.shape[1] + 3


def test_flash_attention_needs_a_gpu(tiny_folder: Path) -> None:
    """test_modeling_qwen2_5_vl.py::…_batch_flashatt2, without a GPU: one line says so."""
    with pytest.raises(ImportError, match="CUDA"):
        Qwen2_5_VLForConditionalGeneration.from_pretrained(
            tiny_folder, attn_implementation="flash_attention_2"
        )


@pytest.mark.refused("slots are found by ids; positions are MRoPE, where transformers counts on")
@torch.no_grad()
def test_pictures_without_types_or_ids(pair: tuple[Any, Any]) -> None:
    """modeling_qwen2_5_vl.py::compute_3d_position_ids: without mm_token_type_ids, or with
    embeddings alone, transformers gives a picture's tokens consecutive positions."""
    ours, theirs = pair
    ids = ids_with_slots(1, width=4)
    given = {"pixel_values": noise(4, 1176), "image_grid_thw": torch.tensor([[1, 2, 2]])}
    with_types = theirs(ids, **given, mm_token_type_ids=token_types(ids)).logits
    assert close(ours(ids, **given).logits, with_types)
    embeds = ours.get_input_embeddings()(ids)
    assert close(ours(inputs_embeds=embeds, **given).logits, with_types)
    assert not close(theirs(ids, **given).logits, with_types)


@pytest.mark.refused("text after a clip follows its time, as in training; mrope='hf5' overlaps it")
def test_text_after_a_clip(config: Qwen2_5_VLConfig) -> None:
    """modeling_qwen2_5_vl.py::get_rope_index"""
    model = random_model(Qwen2_5_VLModel, config)
    inputs = video_inputs(1)
    given = {name: inputs[name] for name in ("input_ids", "video_grid_thw")}
    positions, _ = model.get_rope_index(**given, second_per_grid_ts=[2.0])
    time = positions[0, 0].tolist()
    assert time[32:35] == [32, 40, 41]
    model.mrope = "hf5"
    positions, _ = model.get_rope_index(**given, second_per_grid_ts=[2.0])
    assert positions[0, 0].tolist()[32:35] == [32, 40, 33]


@pytest.mark.refused("padding predicts nothing, so a batch's loss is that of its rows")
def test_loss_of_a_padded_batch(pair: tuple[Any, Any]) -> None:
    """test_modeling_common.py::test_training: transformers lets a padding position predict the
    first real token."""
    ours, theirs = pair
    ids = torch.tensor([[2, 2, 7, 8, 9, 10]])
    mask = torch.tensor([[0, 0, 1, 1, 1, 1]])
    labels = ids.masked_fill(mask == 0, -100)
    with torch.no_grad():
        alone = ours(ids[:, 2:], labels=ids[:, 2:]).loss
        padded = ours(ids, attention_mask=mask, labels=labels).loss
        assert close(padded, alone)
        assert close(theirs(ids[:, 2:], labels=ids[:, 2:]).loss, alone)
        assert not close(theirs(ids, attention_mask=mask, labels=labels).loss, alone)
    assert NUM_COLUMNS == 39
