"""Public methods and fields that other tests reach only through something else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from scenes import Prompt, model_inputs

import qwen25vl
from qwen25vl import (
    BitsAndBytesConfig,
    GenerationConfig,
    QuantoConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLTextConfig,
    Qwen2_5_VLTextModel,
    Qwen2_5_VLVisionConfig,
    TorchAoConfig,
)
from qwen25vl.config import RopeScaling
from qwen25vl.demo import FOLDER
from qwen25vl.ecosystem.image_text_to_text import PipelineCall
from qwen25vl.errors import UsageError
from qwen25vl.model.cache import KVCache
from qwen25vl.model.packing import Packing
from qwen25vl.processing.collate import Padding, collate
from qwen25vl.processing.collate import Prompt as CollatedPrompt
from qwen25vl.processing.messages import read_messages
from qwen25vl.processing.prepare import Preparation, prepare_part

PICTURE = Image.effect_noise((84, 56), 90).convert("RGB")
ROPE = RopeScaling(mrope_section=(2, 3, 3))
TEXT = Qwen2_5_VLTextConfig(40, 32, 24, 2, 2, 1, rope_scaling=ROPE)


@pytest.fixture(scope="module")
def vlm() -> qwen25vl.VisionLanguageModel:
    return qwen25vl.load()


@pytest.fixture(scope="module")
def text_model() -> Qwen2_5_VLTextModel:
    torch.manual_seed(0)
    return Qwen2_5_VLTextModel(TEXT).eval().requires_grad_(False)


def test_answers_are_cut_into_texts(vlm: qwen25vl.VisionLanguageModel) -> None:
    """The ecosystem's name for it: special tokens are left out unless they are asked for."""
    processor = vlm.processor
    rows = [processor.tokenizer.encode(text) for text in ("a dog", "two cats")]
    end = [processor.tokenizer.encode("<|im_end|>", control=True)]
    ids = [rows[0] + end[0], rows[1]]
    assert processor.post_process_image_text_to_text(ids) == ["a dog", "two cats"]
    assert processor.post_process_image_text_to_text(torch.tensor([ids[0]])) == ["a dog"]
    with_ends = processor.post_process_image_text_to_text(ids, skip_special_tokens=False)
    assert with_ends == ["a dog<|im_end|>", "two cats"]


def test_a_processor_knows_its_folder(vlm: qwen25vl.VisionLanguageModel) -> None:
    assert vlm.processor.folder == FOLDER


def test_checkpointing_is_switched_off_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both towers give their blocks to torch's checkpoint while it is on, and none afterwards."""
    vision = Qwen2_5_VLVisionConfig(2, 16, 8, 2, out_hidden_size=32, fullatt_block_indexes=(1,))
    config = Qwen2_5_VLConfig(TEXT, vision, image_token_id=38, video_token_id=39)
    model = Qwen2_5_VLForConditionalGeneration(config).train()
    inputs = model_inputs(Prompt([1]).image(4, 4))
    ids = inputs["input_ids"]
    ids = torch.where(ids == 151655, 38, ids.clamp(max=30))
    calls: list[int] = []

    def counted(block: Any, *arguments: Any, use_reentrant: bool) -> Any:
        calls.append(1)
        return block(*arguments)

    for module in ("model.text", "model.vision"):
        monkeypatch.setattr(f"qwen25vl.{module}.checkpoint", counted)
    pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"]
    for switch, count in (
        (model.gradient_checkpointing_enable, 4),  # two blocks and two layers
        (model.gradient_checkpointing_disable, 0),
    ):
        switch()
        model(ids, pixel_values=pixels, image_grid_thw=grids)
        assert len(calls) == count
        calls.clear()


def test_prepared_media_have_patches_and_their_grid(vlm: qwen25vl.VisionLanguageModel) -> None:
    """A row of patches for each cell of the grid, in the dtype that was asked for."""
    content = [{"type": "image", "image": PICTURE}]
    parts = read_messages([{"role": "user", "content": content}])[0].parts
    settings = vlm.processor.image_processor.settings
    how = Preparation(settings, settings, vlm.processor.video_options, 10**6, torch.bfloat16)
    one = prepare_part(parts[0], how)
    t, h, w = one.grid
    assert (t, 14 * h, 14 * w) == (1, *one.item.model_size)
    assert one.patches.shape == (t * h * w, 1176)
    assert one.patches.dtype == torch.bfloat16


def test_a_stream_holds_what_its_answer_is_made_of(vlm: qwen25vl.VisionLanguageModel) -> None:
    """Tokens written, tokens of the prompt, the picture as it was given, the text with its
    marks."""
    stream = vlm.stream("What is this?", images=[PICTURE], max_new_tokens=6)
    written = [chunk.token for chunk in stream]
    answer = stream.answer
    assert stream.tokens == written
    assert stream.num_prompt_tokens == answer.usage.prompt_tokens > answer.usage.visual_tokens > 0
    assert stream.sources == answer.sources == (PICTURE,)
    assert answer.marked_text == vlm.processor.tokenizer.decode(written)
    assert stream.watch.timings(len(written)) == answer.timings
    assert 0 <= stream.num_cached == answer.usage.cached_tokens < stream.num_prompt_tokens


def test_points_belong_to_the_picture_that_is_named(vlm: qwen25vl.VisionLanguageModel) -> None:
    """A point is mapped by the size of its own picture; by default it is the last picture's."""
    small, large = PICTURE, PICTURE.resize((560, 112))
    stream = vlm.stream("Point to it.", images=[small, large], max_new_tokens=1)
    next(stream)
    stream.tokens = vlm.processor.tokenizer.encode('[{"point_2d": [28, 28], "label": "x"}]')
    answer = stream.answer
    assert [answer.meant(None), answer.meant(0)] == [1, 0]
    for picture, source in ((None, large), (0, small), (1, large)):
        (point,) = answer.find_points(picture)
        sizes = answer.sizes(picture)
        assert sizes["picture"] == answer.meant(picture)
        assert sizes["original_size"] == (source.height, source.width)
        height, width = sizes["model_size"]
        where = (28 * source.width / width, 28 * source.height / height)
        assert (point.x, point.y) == pytest.approx(where, abs=1)
    assert answer.points == answer.find_points()
    with pytest.raises(UsageError, match="picture 2 does not exist"):
        answer.find_points(2)


def test_a_conversation_belongs_to_its_model(vlm: qwen25vl.VisionLanguageModel) -> None:
    assert vlm.chat().vlm is vlm


def test_the_pipeline_answers_one_input(vlm: qwen25vl.VisionLanguageModel) -> None:
    """What its call does with each input of a stream; the default length gives way to the length
    that somebody gave."""
    pipe = qwen25vl.pipeline(model=vlm.model, processor=vlm.processor)
    call = PipelineCall("new", None, 1, None, {}, True, {"max_new_tokens": 4})
    messages = [{"role": "user", "content": "Hello?"}]
    expected = pipe(messages, return_full_text=False, max_new_tokens=4)
    assert pipe.respond(None, messages, call) == expected
    assert pipe.answer_conversations([messages, messages], call) == [expected, expected]
    prompt = vlm.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    (continued,) = pipe.continue_prompts(None, [prompt], call)
    assert continued[0]["generated_text"] == expected[0]["generated_text"]
    assert not pipe.length_is_given({})
    assert pipe.length_is_given({"max_new_tokens": 3})
    own = vlm.model.generation_config
    try:
        vlm.model.generation_config = GenerationConfig(max_new_tokens=77)
        assert pipe.length_is_given({})
    finally:
        vlm.model.generation_config = own


def test_sizes_that_a_config_implies() -> None:
    """3 channels × 2 frames × 14 × 14, and 112 pixels in visual tokens of 28."""
    config = Qwen2_5_VLVisionConfig()
    assert (config.patch_dim, config.window_tokens) == (1176, 4)
    other = Qwen2_5_VLVisionConfig(patch_size=16, window_size=128, spatial_merge_size=4)
    assert (other.patch_dim, other.window_tokens) == (1536, 2)


def test_configs_check_and_read_names() -> None:
    """What a constructor does with its keywords, and again before a model is built: dictionaries
    that were assigned become configs."""
    read = Qwen2_5_VLConfig.read_names({"hidden_size": 32, "torch_dtype": "float32"})
    assert read == {"text_config": {"hidden_size": 32}, "dtype": "float32"}
    named = Qwen2_5_VLTextConfig.read_names(
        {"rope_parameters": {"rope_theta": 5.0, "type": "mrope"}}
    )
    assert named == {"rope_theta": 5.0, "rope_scaling": {"type": "mrope"}}
    assert Qwen2_5_VLVisionConfig.read_names({"in_chans": 4}) == {"in_channels": 4}
    config = Qwen2_5_VLConfig(TEXT, Qwen2_5_VLVisionConfig(out_hidden_size=32))
    config.vision_config = {"depth": 2}
    config.text_config.rope_scaling = {"type": "mrope", "mrope_section": [4, 2, 2]}
    config.check()
    assert config.vision_config.depth == 2
    assert config.text_config.rope_scaling == RopeScaling(mrope_section=(4, 2, 2))
    config.text_config.rope_scaling = ROPE
    assert {*ROPE} == {"type", "mrope_section"}
    assert len(ROPE) == 2


def test_slots_are_filled_by_kind(untied_folder: Path) -> None:
    """Pictures stand in pictures' slots; embeddings that are filled already stay."""
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(untied_folder).model
    ids = torch.tensor([5, 151655, 151656])
    embeds, tokens = torch.zeros(3, 64), torch.ones(1, 64)
    assert model.fill_slots(embeds, ids, "picture", tokens)[:, 0].tolist() == [0, 1, 0]
    assert model.fill_slots(embeds, ids, "video", tokens)[:, 0].tolist() == [0, 0, 1]
    assert model.place_media(embeds, ids, (None, None), (None, None), True) is embeds
    with pytest.raises(UsageError, match="slots for 1 picture tokens, but 0"):
        model.place_media(embeds, ids, (None, None), (None, None), False)


def test_options_of_bitsandbytes_are_taken() -> None:
    """Recipes set all of them; here none but the width changes anything, as the head is never
    quantised."""
    config = BitsAndBytesConfig(
        load_in_8bit=False,
        load_in_4bit=True,
        llm_int8_threshold=6.0,
        llm_int8_skip_modules=["lm_head"],
        llm_int8_enable_fp32_cpu_offload=False,
        llm_int8_has_fp16_weight=False,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_quant_storage="uint8",
    )
    assert config.scheme == BitsAndBytesConfig(load_in_4bit=True).scheme
    assert (
        QuantoConfig(weights="int8", activations=None, modules_to_not_convert=[]).scheme.bits == 8
    )


def test_names_of_quantisations() -> None:
    """transformers' name says how many bits."""
    config = TorchAoConfig(quant_type="int4_weight_only")
    assert (config.quant_type, config.bits) == ("int4_weight_only", 4)


def test_prompts_are_put_together(vlm: qwen25vl.VisionLanguageModel) -> None:
    """Padded on the side that is asked for, else on the processor's own."""
    pieces = [[("a dog", False)], [("<|im_start|>", True), ("a dog", False)]]
    prompts = [CollatedPrompt(text, []) for text in pieces]
    for side, expected in (("left", [0, 1]), ("right", [1, 0])):
        inputs = collate(prompts, vlm.processor.tokenizer, Padding(side))
        ends = inputs.attention_mask[0, 0], inputs.attention_mask[0, -1]
        assert [int(end) for end in ends] == expected
        assert inputs.attention_mask[1].all()


def test_a_cache_moves_on_once_for_all_layers() -> None:
    """What is written lies behind the tokens that `advance` counted, and moves with them into
    larger storage."""
    cache = KVCache(TEXT, torch.float32, capacity=4)
    values = torch.arange(2 * 3 * 16.0).view(2, 1, 3, 16)
    for layer in range(2):
        keys, _ = cache.write(layer, values[layer], -values[layer])
        assert keys.shape == (1, 3, 16)
        assert cache.length == 0
    cache.advance(3)
    assert cache.length == cache.get_seq_length() == 3
    larger = cache.copy_storage(9)
    assert larger.shape == (2, 2, 1, 9, 16)
    assert torch.equal(larger[:, 0, :, :3], values)
    assert torch.equal(larger[:, 1, :, :3], -values)


def test_a_cache_begins_with_part_of_another() -> None:
    """What lay there before is replaced, and the other cache stays as it is."""
    old, new = (KVCache(TEXT, torch.float32, capacity=2) for _ in range(2))
    old.reserve(6)
    old.storage.fill_(1.0)
    old.length = 6
    new.storage.fill_(2.0)
    new.length = 2
    new.copy_prefix(old, 4, 9)
    assert (new.length, new.next_position, old.length) == (4, 9, 6)
    new.storage[:, :, :, :4] *= 3
    assert (old.storage == 1).all()


@torch.no_grad()
def test_caches_that_are_opened(text_model: Qwen2_5_VLTextModel) -> None:
    """One of the prompt's length for each row; those given, if there are as many; none where they
    are not wanted."""
    packing = Packing.of((2, 5), torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]))
    opened = text_model.open_caches(packing, None, None)
    assert [cache.capacity for cache in opened] == [3, 5]
    assert text_model.open_caches(packing, opened, True) is opened
    assert text_model.open_caches(packing, None, False) is None
    with pytest.raises(UsageError, match="has 1 sequences, the batch 2"):
        text_model.open_caches(packing, opened[:1], None)
    with torch.enable_grad(), pytest.raises(UsageError, match="gradients do not flow"):
        text_model.open_caches(packing, None, True)


def test_positions_in_each_shape(text_model: Qwen2_5_VLTextModel) -> None:
    """Counted on from a cache, one stream for all three, or three; without the padding."""
    packing = Packing.of((2, 3), torch.tensor([[0, 1, 1], [1, 1, 1]]))
    counted = text_model.read_positions(packing, None, None)
    assert counted.tolist() == [[0, 1, 0, 1, 2]] * 3
    caches = [KVCache(TEXT, torch.float32) for _ in range(2)]
    caches[1].next_position = 7
    assert text_model.read_positions(packing, None, caches).tolist() == [[0, 1, 7, 8, 9]] * 3
    one = torch.tensor([[9, 4, 5], [6, 7, 8]])
    assert text_model.read_positions(packing, one, None).tolist() == [[4, 5, 6, 7, 8]] * 3
    three = torch.stack([one, one + 10, one + 20])
    found = text_model.read_positions(packing, three, None)
    assert found.tolist() == [[4 + n, 5 + n, 6 + n, 7 + n, 8 + n] for n in (0, 10, 20)]
    with pytest.raises(UsageError, match=r"position_ids has shape \[2, 2\]"):
        text_model.read_positions(packing, one[:, 1:], None)


@torch.no_grad()
def test_padded_rows_go_back_to_their_places(text_model: Qwen2_5_VLTextModel) -> None:
    """What `run` gives, zeros where padding was, and caches that know the next position."""
    packing = Packing.of((2, 3), torch.tensor([[0, 1, 1], [1, 1, 1]]))
    embeds = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([[0, 9, 0, 1, 2]]).expand(3, -1)
    caches = text_model.open_caches(packing, None, None)
    out = text_model.run_padded(embeds, positions, packing, caches, True)
    flat = text_model.run(embeds, positions, [2, 3])
    assert torch.equal(out.last_hidden_state, packing.unpack(flat))
    assert not out.last_hidden_state[0, 0].any()
    assert torch.equal(out.hidden_states[0], packing.unpack(embeds))
    assert len(out.hidden_states) == 3
    assert [cache.next_position for cache in caches] == [10, 3]
    assert out.rope_deltas.tolist() == [[10 - 2], [0]]


def test_positions_of_packed_rows_count_on_from_their_caches(untied_folder: Path) -> None:
    """The second turn of a conversation with a new picture: everything stands behind the first."""
    config = Qwen2_5_VLConfig.from_pretrained(untied_folder)
    with torch.device("cpu"):
        model = Qwen2_5_VLForConditionalGeneration(config).model
    inputs = model_inputs(Prompt([1]).image(4, 6).text(2), Prompt([3, 4]))
    packing = Packing.of(tuple(inputs["input_ids"].shape), inputs["attention_mask"])
    given = (packing, inputs["input_ids"], inputs["image_grid_thw"], None, None)
    fresh = model.pack_positions(*given)
    caches = [KVCache(config.text_config, torch.float32) for _ in range(2)]
    caches[0].next_position, caches[1].next_position = 100, 50
    behind = model.pack_positions(*given, caches)
    first = packing.lengths[0]
    assert torch.equal(behind[:, :first], fresh[:, :first] + 100)
    assert torch.equal(behind[:, first:], fresh[:, first:] + 50)
