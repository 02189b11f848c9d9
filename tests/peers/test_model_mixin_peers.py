"""tests/test_modeling_common.py of transformers, for this model's classes: doors, outputs, saving
and loading."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_model import WHOLE, noise, picture_inputs, randomise
from torch import nn

from qwen25vl import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLModel,
    Qwen2_5_VLTextModel,
)
from qwen25vl.errors import CheckpointError, OptionError, TensorError, UsageError

CLASSES = [Qwen2_5_VLModel, Qwen2_5_VLForConditionalGeneration]
ALL = [*CLASSES, Qwen2_5_VLTextModel]
both = pytest.mark.parametrize("model_class", CLASSES)
every = pytest.mark.parametrize("model_class", ALL)
IDS = torch.randint(6, 99, (2, 7), generator=torch.Generator().manual_seed(5))


def make(model_class: Any, seed: int = 0, **changes: Any) -> Any:
    config = Qwen2_5_VLConfig(**{**copy.deepcopy(WHOLE), **changes})
    part = config.text_config if model_class is Qwen2_5_VLTextModel else config
    model = model_class(part)
    randomise(model, seed)
    return model.eval()


def first(model: Any, **inputs: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs)[0]


# ---- saving and loading


@every
def test_save_load(model_class: Any, tmp_path: Path) -> None:
    """test_modeling_common.py::test_save_load: the same outputs after it, for each class."""
    model = make(model_class)
    model.save_pretrained(tmp_path)
    again = model_class.from_pretrained(tmp_path)
    assert type(again) is model_class
    assert torch.equal(first(again, input_ids=IDS), first(model, input_ids=IDS))
    assert again.name_or_path == str(tmp_path)
    assert not again.training


@every
def test_load_from_a_whole_checkpoint(model_class: Any, tmp_path: Path) -> None:
    """test_modeling_common.py::test_save_load_fast_init_from_base: a part is taken out of a whole
    model, with or without a head of its own."""
    for is_tied in (True, False):
        whole = make(Qwen2_5_VLForConditionalGeneration, tie_word_embeddings=is_tied)
        whole.save_pretrained(tmp_path)
        part = model_class.from_pretrained(tmp_path)
        expected = {
            Qwen2_5_VLModel: whole.model,
            Qwen2_5_VLForConditionalGeneration: whole,
            Qwen2_5_VLTextModel: whole.language_model,
        }[model_class]
        assert torch.equal(first(part, input_ids=IDS), first(expected, input_ids=IDS))


@every
def test_transformers_loads_what_we_save(model_class: Any, tmp_path: Path) -> None:
    """test_modeling_common.py::test_save_load, across packages."""
    model = make(model_class)
    model.save_pretrained(tmp_path)
    theirs = getattr(transformers, model_class.__name__).from_pretrained(tmp_path).eval()
    found, expected = first(model, input_ids=IDS), first(theirs, input_ids=IDS)
    assert torch.allclose(found, expected, atol=1e-4)


@both
def test_we_load_what_transformers_saves(model_class: Any, tmp_path: Path) -> None:
    """test_modeling_common.py::test_reverse_loading_mapping: the names that each class of
    transformers writes."""
    torch.manual_seed(0)
    config = transformers.Qwen2_5_VLConfig(**copy.deepcopy(WHOLE))
    theirs = getattr(transformers, model_class.__name__)(config).eval()
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = model_class.from_pretrained(tmp_path)
    assert torch.allclose(first(ours, input_ids=IDS), first(theirs, input_ids=IDS), atol=1e-4)


@every
def test_shards(model_class: Any, tmp_path: Path) -> None:
    """test_modeling_utils.py::test_checkpoint_sharding_local: files of at most max_shard_size."""
    model = make(model_class)
    model.save_pretrained(tmp_path, max_shard_size="20KB", safe_serialization=True)
    files = list(tmp_path.glob("model-*.safetensors"))
    assert len(files) > 2
    again = model_class.from_pretrained(tmp_path, use_safetensors=True, low_cpu_mem_usage=True)
    assert torch.equal(first(again, input_ids=IDS), first(model, input_ids=IDS))


def test_a_config_and_tensors_given(tmp_path: Path) -> None:
    """test_modeling_common.py::test_from_pretrained_no_checkpoint and test_load_from_config…:
    config= and state_dict= take the place of the folder's."""
    model, other = (make(Qwen2_5_VLForConditionalGeneration, seed) for seed in (0, 1))
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path, output_hidden_states=True)
    loaded = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, config=config, state_dict=other.state_dict()
    )
    assert loaded.config == config
    assert loaded.config is not config, "from_pretrained copies it, as transformers does"
    assert torch.equal(first(loaded, input_ids=IDS), first(other, input_ids=IDS))
    assert loaded(IDS).hidden_states is not None
    with pytest.raises(TensorError, match="state_dict"):
        Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, state_dict={})


def test_other_tensors_are_saved(tmp_path: Path) -> None:
    """test_modeling_common.py::test_save_load_keys_to_ignore_on_save and Trainer, which hands its
    own state_dict to save_pretrained."""
    model, other = (make(Qwen2_5_VLForConditionalGeneration, seed) for seed in (0, 1))
    model.save_pretrained(tmp_path, state_dict=other.state_dict())
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(first(again, input_ids=IDS), first(other, input_ids=IDS))
    model.save_pretrained(tmp_path / "none", is_main_process=False)
    assert not (tmp_path / "none").exists()


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    """test_modeling_common.py::test_can_use_safetensors, test_tied_weights_keys and
    test_model_weights_reload_no_missing_tied_weights."""
    make(Qwen2_5_VLForConditionalGeneration).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert "lm_head.weight" not in stored
    model, info = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, output_loading_info=True
    )
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs")
    assert info == {kind: [] for kind in kinds}
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_untied_weights_stay_apart(tmp_path: Path) -> None:
    """test_modeling_common.py::test_load_save_without_tied_weights"""
    model = make(Qwen2_5_VLForConditionalGeneration, tie_word_embeddings=False)
    model.save_pretrained(tmp_path)
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, again.get_input_embeddings().weight)


def test_state_dict_through_torch(tmp_path: Path) -> None:
    """test_modeling_common.py::test_torch_save_load"""
    model, other = (make(Qwen2_5_VLForConditionalGeneration, seed) for seed in (0, 1))
    torch.save(model.state_dict(), tmp_path / "state.bin")
    other.load_state_dict(torch.load(tmp_path / "state.bin", weights_only=True))
    assert torch.equal(first(other, input_ids=IDS), first(model, input_ids=IDS))


def test_a_subclass_is_loaded(tmp_path: Path) -> None:
    """test_modeling_utils.py: a class of one's own, with post_init."""

    class Mine(Qwen2_5_VLForConditionalGeneration):
        def __init__(self, *given: Any) -> None:
            super().__init__(*given)
            self.post_init()

    make(Qwen2_5_VLForConditionalGeneration).save_pretrained(tmp_path)
    assert type(Mine.from_pretrained(tmp_path)) is Mine


@pytest.mark.parametrize(
    "given",
    [{"dtype": torch.bfloat16}, {"torch_dtype": "bfloat16"}, {"dtype": "bfloat16"}],
    ids=str,
)
def test_dtype_under_both_names(given: Any, tmp_path: Path) -> None:
    """test_modeling_common.py::test_bc_torch_dtype"""
    make(Qwen2_5_VLForConditionalGeneration).save_pretrained(tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, **given)
    assert model.dtype == model.model.dtype == torch.bfloat16
    assert AutoModel.from_config(model.config, **given).dtype == torch.bfloat16
    assert str(model.device) == "cpu"


def test_attention_of_each_tower(tmp_path: Path) -> None:
    """test_modeling_common.py::test_attn_implementation_composite_models, while loading"""
    make(Qwen2_5_VLForConditionalGeneration).save_pretrained(tmp_path)
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        tmp_path, attn_implementation={"text_config": "eager", "vision_config": "sdpa"}
    )
    assert model.language_model.layers[0].self_attn.implementation == "eager"
    assert model.visual.blocks[0].attn.implementation == "sdpa"


def test_auto_model_has_no_head(tmp_path: Path) -> None:
    """test_modeling_auto.py::test_model_from_pretrained"""
    make(Qwen2_5_VLForConditionalGeneration).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is Qwen2_5_VLModel
    made = AutoModelForImageTextToText.from_config(AutoConfig.from_pretrained(tmp_path))
    assert type(made) is Qwen2_5_VLForConditionalGeneration


def test_on_meta() -> None:
    """test_modeling_common.py::test_can_be_initialized_on_meta and
    test_can_load_with_meta_device_context_manager"""
    with torch.device("meta"):
        model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig(**copy.deepcopy(WHOLE)))
    assert {p.device.type for p in model.parameters()} == {"meta"}


def test_loading_inside_a_device(tmp_path: Path) -> None:
    """test_modeling_common.py::test_can_load_with_device_context_manager"""
    make(Qwen2_5_VLForConditionalGeneration).save_pretrained(tmp_path)
    with torch.device("cpu"):
        model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert {p.device.type for p in model.parameters()} == {"cpu"}


# ---- outputs


@both
def test_determinism(model_class: Any) -> None:
    """test_modeling_common.py::test_determinism"""
    model = make(model_class)
    assert torch.equal(first(model, **picture_inputs()), first(model, **picture_inputs()))


@every
def test_forward_signature(model_class: Any) -> None:
    """test_modeling_common.py::test_forward_signature and test_model_main_input_name: ids come
    first."""
    names = list(inspect.signature(model_class.forward).parameters)
    assert names[:3] == ["self", "input_ids", "attention_mask"]
    assert names[1] == model_class.main_input_name


@both
def test_batching_equivalence(model_class: Any) -> None:
    """test_modeling_common.py::test_batching_equivalence: each row as if alone."""
    model, inputs = make(model_class), picture_inputs()
    together = first(model, **inputs)
    for row in range(3):
        alone = first(model, **{name: value[row : row + 1] for name, value in inputs.items()})
        assert torch.allclose(alone[0], together[row], atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@both
def test_padding_side(model_class: Any, side: str) -> None:
    """test_modeling_common.py::test_eager_padding_matches_padding_free… and
    test_left_padding_compatibility"""
    model, pad = make(model_class), torch.full((2, 4), 2)
    ids = torch.cat([pad, IDS] if side == "left" else [IDS, pad], dim=1)
    mask = (ids != 2).long() if side == "left" else torch.cat([IDS > 0, pad < 0], 1).long()
    mask[:, 4 : 11 if side == "left" else 4] = 1
    kept = slice(4, None) if side == "left" else slice(0, 7)
    padded = first(model, input_ids=ids, attention_mask=mask)[:, kept]
    assert torch.allclose(padded, first(model, input_ids=IDS), atol=1e-5)


@both
@pytest.mark.parametrize("by_config", [False, True])
def test_attention_outputs(model_class: Any, by_config: bool) -> None:
    """test_modeling_common.py::test_attention_outputs: one of each layer, [B, H, L, L], asked for
    by an argument or by the config, and beside hidden states."""
    model = make(model_class)
    model.config.output_attentions = by_config
    given = {} if by_config else {"output_attentions": True}
    with torch.no_grad():
        out = model(**picture_inputs(), **given, output_hidden_states=True)
    assert [tuple(a.shape) for a in out.attentions] == [(3, 4, 39, 39)] * 4
    assert torch.allclose(out.attentions[0].sum(-1), torch.ones(3, 4, 39), atol=1e-5)
    assert len(out.hidden_states) == 5
    assert out[-2 if "rope_deltas" in out else -1] is out.attentions


@both
@pytest.mark.parametrize("by_config", [False, True])
def test_hidden_states_output(model_class: Any, by_config: bool) -> None:
    """test_modeling_common.py::test_hidden_states_output: embeddings, and each layer's result."""
    model = make(model_class)
    model.config.output_hidden_states = by_config
    given = {} if by_config else {"output_hidden_states": True}
    with torch.no_grad():
        out = model(**picture_inputs(), **given)
    assert [tuple(h.shape) for h in out.hidden_states] == [(3, 39, 32)] * 5


@every
def test_retain_grad(model_class: Any) -> None:
    """test_modeling_common.py::test_retain_grad_hidden_states_attentions: gradients of the result
    reach every hidden state and every attention weight; they were copies beside the graph."""
    model = make(model_class)
    mask = torch.tensor([[0, 1, 1, 1, 1, 1, 1], [1] * 7])
    out = model(IDS, attention_mask=mask, output_hidden_states=True, output_attentions=True)
    shown = [*out.hidden_states, *out.attentions]
    for tensor in shown:
        tensor.retain_grad()
    out[0][:, -1].sum().backward()
    assert all(tensor.grad is not None and tensor.grad.any() for tensor in shown)


@both
@pytest.mark.parametrize("shown", [{}, {"output_hidden_states": True}, {"output_attentions": True}])
def test_tuple_is_the_output(model_class: Any, shown: dict[str, bool]) -> None:
    """test_modeling_common.py::test_model_outputs_equivalence: return_dict=False, to_tuple,
    places, keys and attributes are the same values."""
    model = make(model_class)
    with torch.no_grad():
        plain = model(**picture_inputs(), **shown, return_dict=False, use_cache=False)
        out = model(**picture_inputs(), **shown, return_dict=True, use_cache=False)
    assert type(plain) is tuple
    assert len(plain) == len(out) == len(out.to_tuple())
    assert torch.equal(plain[0], out[0])
    for name in out:
        assert out[name] is getattr(out, name)
    assert out[:1][0] is out[0]
    assert list(out) == list(out.keys())
    assert out.get("loss") is None


def test_outputs_can_be_changed() -> None:
    """test_modeling_outputs / test_model_output.py::test_set_attributes and test_set_keys"""
    with torch.no_grad():
        out = make(Qwen2_5_VLForConditionalGeneration)(IDS)
    out.loss = torch.tensor(1.0)
    assert out[0] is out["loss"]
    out["loss"] = torch.tensor(2.0)
    assert out.loss == 2
    with pytest.raises(KeyError):
        out["nothing"]
    assert "logits=float32" in repr(out)


@both
def test_inputs_embeds(model_class: Any) -> None:
    """test_modeling_common.py::test_inputs_embeds and test_inputs_embeds_matches_input_ids"""
    model = make(model_class)
    embeds = model.get_input_embeddings()(IDS)
    given = first(model, inputs_embeds=embeds)
    assert torch.allclose(given, first(model, input_ids=IDS), atol=1e-6)


@pytest.mark.parametrize("keep", [1, 3, torch.tensor([0, 4])], ids=str)
def test_logits_to_keep(keep: Any) -> None:
    """test_modeling_common.py::test_forward_with_logits_to_keep"""
    model = make(Qwen2_5_VLForConditionalGeneration)
    every_one = first(model, input_ids=IDS)
    expected = every_one[:, keep] if isinstance(keep, torch.Tensor) else every_one[:, -keep:]
    found = first(model, input_ids=IDS, logits_to_keep=keep)
    assert torch.allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right", "none"])
def test_eager_is_sdpa(side: str) -> None:
    """test_modeling_common.py::test_eager_matches_sdpa_inference"""
    model, mask = make(Qwen2_5_VLForConditionalGeneration), torch.ones_like(IDS)
    if side != "none":
        mask[0, : 3 if side == "left" else 0] = mask[0, 7 if side == "left" else 4 :] = 0
    rows = mask.bool()
    sdpa = first(model, input_ids=IDS, attention_mask=mask)[rows]
    model.set_attn_implementation("eager")
    assert torch.allclose(first(model, input_ids=IDS, attention_mask=mask)[rows], sdpa, atol=1e-5)


def test_attention_is_set_later() -> None:
    """test_modeling_common.py::test_can_set_attention_dynamically and …_composite_model: for the
    whole, or for one tower."""
    model = make(Qwen2_5_VLForConditionalGeneration)
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation({"vision_config": "sdpa"})
    assert model.config._attn_implementation == "eager"
    assert model.config.vision_config._attn_implementation == "sdpa"
    assert model.visual.blocks[0].attn.implementation == "sdpa"
    assert model.language_model.layers[0].self_attn.implementation == "eager"
    for wrong in ("fast", {"audio_config": "sdpa"}):
        with pytest.raises(UsageError, match="known are"):
            model.set_attn_implementation(wrong)


@pytest.mark.parametrize("by", ["config", "argument", "from_config"])
def test_attention_by_the_config(by: str) -> None:
    """test_modeling_common.py::test_config_attn_implementation_setter and
    test_attn_implementation_composite_models"""
    config = Qwen2_5_VLConfig(**copy.deepcopy(WHOLE))
    if by == "config":
        config._attn_implementation = "eager"
        model = Qwen2_5_VLForConditionalGeneration(config)
    elif by == "argument":
        model = Qwen2_5_VLForConditionalGeneration(config, "eager")
    else:
        model = Qwen2_5_VLForConditionalGeneration._from_config(config, attn_implementation="eager")
    assert model.config._attn_implementation == "eager"
    assert model.language_model.layers[0].self_attn.implementation == "eager"
    assert model.visual.blocks[0].attn.implementation == "eager"


@torch.no_grad()
def test_cache_shapes() -> None:
    """test_generation_utils.py::test_past_key_values_format: keys and values of each layer,
    [B, key heads, tokens, head]."""
    model = make(Qwen2_5_VLForConditionalGeneration)
    kept = model(IDS, use_cache=True).past_key_values
    assert kept.get_seq_length() == kept.get_seq_length(2) == 7
    assert len(kept.layers) == 4
    for layer in kept.layers:
        assert layer.keys.shape == layer.values.shape == (2, 2, 7, 8)
        assert layer.get_seq_length() == 7
    assert kept.max_batch_size == len(kept) == 2
    assert kept.is_initialized
    assert kept.get_max_cache_shape() == -1
    assert model(IDS, use_cache=False).past_key_values is None


@torch.no_grad()
def test_cache_values_are_theirs() -> None:
    """test_cache_utils.py::test_dynamic_cache_retrocompatibility: keys after rotation, values, of a
    row that is padded too."""
    ours = make(Qwen2_5_VLForConditionalGeneration)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(**copy.deepcopy(WHOLE))
    ).eval()
    state = dict(ours.state_dict())
    theirs.load_state_dict({**state, "lm_head.weight": ours.head.weight})
    found = ours(IDS).past_key_values.layers
    expected = theirs(IDS).past_key_values.layers
    for one, two in zip(found, expected, strict=True):
        assert torch.allclose(one.keys, two.keys, atol=1e-4)
        assert torch.allclose(one.values, two.values, atol=1e-4)


@torch.no_grad()
def test_cache_methods() -> None:
    """test_cache_utils.py: crop, reorder_cache, batch_repeat_interleave, batch_select_indices,
    reset."""
    model, more = make(Qwen2_5_VLForConditionalGeneration), torch.tensor([[8], [9]])
    whole = model(torch.cat([IDS[:, :5], more], dim=1)).logits[:, -1]
    kept = model(IDS).past_key_values
    kept.crop(5)
    kept.reorder_cache(torch.tensor([1, 0]))
    assert torch.allclose(
        model(more.flip(0), past_key_values=kept).logits[:, -1], whole.flip(0), atol=1e-5
    )
    kept.crop(-1)
    kept.batch_repeat_interleave(2)
    assert len(kept) == 4
    kept.batch_select_indices([1, 3])
    rows = model(more.flip(0), past_key_values=kept).logits[:, -1]
    assert torch.allclose(rows, whole.flip(0), atol=1e-5)
    kept.reset()
    assert not kept.is_initialized


@torch.no_grad()
def test_config_switches_the_cache_off() -> None:
    """test_modeling_common.py::test_training: recipes set `model.config.use_cache = False`."""
    model = make(Qwen2_5_VLForConditionalGeneration)
    model.config.use_cache = False
    assert model(IDS).past_key_values is None
    assert model(IDS, use_cache=True).past_key_values is not None


# ---- embeddings


@every
def test_get_and_set_embeddings(model_class: Any) -> None:
    """test_modeling_common.py::test_model_get_set_embeddings"""
    model = make(model_class)
    assert isinstance(model.get_input_embeddings(), nn.Embedding)
    new = nn.Embedding(10, 32)
    model.set_input_embeddings(new)
    assert model.get_input_embeddings() is new
    head = model.get_output_embeddings()
    assert head is None or isinstance(head, nn.Linear)


def test_set_output_embeddings() -> None:
    """test_modeling_common.py::test_model_get_set_embeddings and test_tie_model_weights: a head
    with a weight of its own is untied; tie_weights ties it again."""
    model = make(Qwen2_5_VLForConditionalGeneration)
    tied = first(model, input_ids=IDS)
    model.set_output_embeddings(model.get_output_embeddings())
    assert model.lm_head is None
    model.set_output_embeddings(nn.Linear(32, 99, bias=False))
    assert not model.config.tie_word_embeddings
    assert not torch.equal(first(model, input_ids=IDS), tied)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    assert torch.equal(first(model, input_ids=IDS), tied)
    make(Qwen2_5_VLModel).tie_weights()


@pytest.mark.parametrize("is_tied", [True, False])
@pytest.mark.parametrize("change", [10, -15])
def test_resize_embeddings(change: int, is_tied: bool) -> None:
    """test_modeling_common.py::test_resize_tokens_embeddings and test_resize_embeddings_untied: old
    rows stay, the config and the logits follow."""
    model = make(Qwen2_5_VLForConditionalGeneration, tie_word_embeddings=is_tied)
    old = model.get_input_embeddings().weight.clone()
    model.resize_token_embeddings(99 + change)
    new = model.get_input_embeddings()
    assert len(new.weight) == new.num_embeddings == 99 + change
    assert model.config.text_config.vocab_size == 99 + change
    kept = min(99, 99 + change)
    assert torch.equal(new.weight[:kept], old[:kept])
    ids = IDS.clamp(max=80)
    assert first(model, input_ids=ids).shape == (2, 7, 99 + change)
    assert model(ids, labels=ids).loss.isfinite()


def test_new_rows_are_the_mean() -> None:
    """test_modeling_common.py::test_resize_tokens_embeddings, mean_resizing: rows that stand apart
    from the others would be chosen at once."""
    model = make(Qwen2_5_VLForConditionalGeneration)
    old = model.get_input_embeddings().weight.clone()
    resized = model.resize_token_embeddings(101)
    assert resized is model.get_input_embeddings()
    assert torch.allclose(resized.weight[99:], old.mean(0).expand(2, -1), atol=1e-6)
    model.resize_token_embeddings(200, mean_resizing=False)
    assert model.get_input_embeddings().weight[101:].std().item() == pytest.approx(0.02, rel=0.2)


def test_multiples() -> None:
    """test_modeling_common.py::test_resize_tokens_embeddings, pad_to_multiple_of"""
    model = make(Qwen2_5_VLTextModel)
    assert len(model.resize_token_embeddings(100, pad_to_multiple_of=64).weight) == 128
    assert len(model.resize_token_embeddings(pad_to_multiple_of=50).weight) == 150
    assert len(model.resize_token_embeddings().weight) == 150
    for wrong in ({"new_num_tokens": 0}, {"pad_to_multiple_of": 0}):
        with pytest.raises(UsageError):
            model.resize_token_embeddings(**wrong)


def test_resized_models_are_saved(tmp_path: Path) -> None:
    """test_modeling_common.py::test_resize_tokens_embeddings, with test_save_load."""
    model = make(Qwen2_5_VLForConditionalGeneration)
    model.resize_token_embeddings(120)
    model.save_pretrained(tmp_path)
    again = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)
    assert torch.equal(first(again, input_ids=IDS), first(model, input_ids=IDS))


# ---- training


@every
def test_training(model_class: Any) -> None:
    """test_modeling_common.py::test_training: every parameter that takes part has a gradient."""
    model = make(model_class).train()
    inputs = {"input_ids": IDS} if model_class is Qwen2_5_VLTextModel else picture_inputs()
    labels = {"labels": inputs["input_ids"]} if hasattr(model, "lm_head") else {}
    model(**inputs, **labels)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    "given", [None, {"use_reentrant": False}, {"use_reentrant": True}], ids=str
)
def test_training_with_checkpointing(given: Any) -> None:
    """test_modeling_common.py::test_training_gradient_checkpointing, …_use_reentrant and …_false:
    the same gradients."""
    gradients = []
    for is_on in (False, True):
        model = make(Qwen2_5_VLForConditionalGeneration).train()
        if is_on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=given)
        model(**picture_inputs(), labels=picture_inputs()["input_ids"]).loss.backward()
        gradients.append([p.grad for p in model.parameters()])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*gradients, strict=True))


@every
def test_checkpointing_is_switched(model_class: Any) -> None:
    """test_modeling_common.py::test_gradient_checkpointing_enable_disable, and its newer name"""
    model = make(model_class)
    assert model.supports_gradient_checkpointing
    assert not model.is_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    model.gradient_checkpointing_disable()
    model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    parts = [m for m in model.modules() if hasattr(m, "gradient_checkpointing")]
    assert parts
    assert all(m.gradient_checkpointing for m in parts)
    model.activation_checkpointing_disable()
    assert not model.is_gradient_checkpointing
    model.switch_checkpointing(True)
    assert model.is_gradient_checkpointing
    for wrong in ({"every_n_layers": 2}, {"gradient_checkpointing_kwargs": {"color": 1}}):
        with pytest.raises(OptionError):
            model.gradient_checkpointing_enable(**wrong)


@every
def test_inputs_require_grads(model_class: Any) -> None:
    """test_modeling_common.py::test_enable_input_require_grads and
    test_peft_gradient_checkpointing_enable_disable: with frozen weights, gradients reach the
    embeddings' output."""
    model = make(model_class).requires_grad_(False).train()
    assert not model(IDS)[0].requires_grad
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable()
    assert model(IDS)[0].requires_grad
    model.disable_input_require_grads()
    assert not model(IDS)[0].requires_grad


def test_loss_of_several_parts() -> None:
    """trainer: num_items_in_batch divides the sum over all parts, so that accumulated gradients are
    those of one large batch."""
    model = make(Qwen2_5_VLForConditionalGeneration)
    labels = IDS.clone()
    labels[0, :4] = -100
    whole = model(IDS, labels=labels).loss
    count = int((labels[:, 1:] != -100).sum())
    parts = [
        model(IDS[row : row + 1], labels=labels[row : row + 1], num_items_in_batch=count).loss
        for row in range(2)
    ]
    assert torch.allclose(sum(parts), whole, atol=1e-5)
    counted = model(IDS, labels=labels, num_items_in_batch=torch.tensor(count)).loss
    assert torch.allclose(counted, whole, atol=1e-5)


# ---- doors


def test_parts_are_the_public_classes() -> None:
    """test_modeling_common.py::test_model_base_model_prefix and
    test_internal_model_config_and_subconfig_are_same"""
    model = make(Qwen2_5_VLForConditionalGeneration)
    assert type(model.model) is Qwen2_5_VLModel
    assert type(model.language_model) is Qwen2_5_VLTextModel
    assert model.base_model is model.model
    assert model.visual is model.model.visual
    assert model.get_decoder() is model.model.get_decoder() is model.language_model
    assert model.language_model.get_decoder() is model.language_model
    assert model.model.config is model.config
    assert model.language_model.config is model.config.text_config
    assert model.visual.config is model.config.vision_config


def test_who_can_generate() -> None:
    """test_modeling_common.py::test_generation_tester_mixin_inheritance"""
    assert make(Qwen2_5_VLForConditionalGeneration).can_generate()
    assert not make(Qwen2_5_VLModel).can_generate()


def test_numbers_of_parameters() -> None:
    """test_modeling_utils.py::test_num_parameters and get_memory_footprint, as transformers counts
    them."""
    ours = make(Qwen2_5_VLForConditionalGeneration)
    theirs = transformers.Qwen2_5_VLForConditionalGeneration(
        transformers.Qwen2_5_VLConfig(**copy.deepcopy(WHOLE))
    )
    assert ours.num_parameters() == theirs.num_parameters()
    assert ours.num_parameters(exclude_embeddings=True) == ours.num_parameters() - 99 * 32
    ours.visual.requires_grad_(False)
    trained = ours.num_parameters(only_trainable=True)
    assert trained == sum(p.numel() for p in ours.language_model.parameters())
    assert ours.get_memory_footprint(return_buffers=False) == 4 * ours.num_parameters()


def test_tags_are_kept() -> None:
    """test_modeling_utils.py::test_add_model_tags…: trainers name themselves."""
    model, other = make(Qwen2_5_VLModel), make(Qwen2_5_VLModel)
    model.add_model_tags(["trl", "sft"])
    model.add_model_tags("trl")
    assert model.model_tags == ("trl", "sft")
    assert other.model_tags == ()


def test_where_parts_stand() -> None:
    """modeling_utils.py::base_model_prefix: names under which a part's tensors are stored."""
    paths = [make(c).path_in_checkpoint() for c in ALL]
    assert paths == ["model", "", "model.language_model"]
    config = Qwen2_5_VLConfig(**copy.deepcopy(WHOLE))
    for model_class in ALL:
        whole = model_class.assemble(copy.deepcopy(config), "sdpa", "reference")
        assert type(model_class.part_of(whole)) is model_class
    assert Qwen2_5_VLModel.settle_attention(config, None) == "sdpa"


# ---- refused on purpose


@pytest.mark.refused("no cache while gradients are recorded: they would be cut without a word")
def test_cache_with_gradients() -> None:
    """test_generation_utils.py::test_past_key_values_format, outside of torch.no_grad()"""
    model = make(Qwen2_5_VLForConditionalGeneration)
    with pytest.raises(UsageError, match=r"torch\.no_grad"):
        model(IDS, use_cache=True)


@pytest.mark.refused("a cache of another package has no positions; begin without one")
@torch.no_grad()
def test_cache_of_transformers() -> None:
    """test_cache_utils.py: DynamicCache() as past_key_values"""
    model = make(Qwen2_5_VLForConditionalGeneration)
    with pytest.raises(UsageError, match="leave it out to begin"):
        model(IDS, past_key_values=transformers.DynamicCache())


@pytest.mark.refused("a checkpoint without a head is an error, not a random head")
def test_missing_head(tmp_path: Path) -> None:
    """test_modeling_common.py::test_correct_missing_keys"""
    make(Qwen2_5_VLModel, tie_word_embeddings=False).save_pretrained(tmp_path)
    with pytest.raises(TensorError, match=r"lm_head\.weight is missing"):
        Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path)


@pytest.mark.refused("missing tensors are an error")
def test_missing_weights(tmp_path: Path) -> None:
    """test_modeling_common.py::test_can_init_all_missing_weights"""
    make(Qwen2_5_VLModel).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored.pop("model.norm.weight")
    save_file(stored, tmp_path / "model.safetensors")
    with pytest.raises(TensorError, match=r"model\.norm\.weight is missing"):
        Qwen2_5_VLModel.from_pretrained(tmp_path)


@pytest.mark.refused("every tensor must have the shape that config.json gives")
@pytest.mark.parametrize("given", [{}, {"ignore_mismatched_sizes": True}], ids=str)
def test_mismatched_shapes(given: dict[str, bool], tmp_path: Path) -> None:
    """test_modeling_common.py::test_load_with_mismatched_shapes"""
    make(Qwen2_5_VLModel).save_pretrained(tmp_path)
    config = Qwen2_5_VLConfig(**{**copy.deepcopy(WHOLE), "vocab_size": 10})
    with pytest.raises((TensorError, OptionError), match=r"\[99, 32\]|shape"):
        Qwen2_5_VLModel.from_pretrained(tmp_path, config=config, **given)


@pytest.mark.refused("an attention mask says which tokens are padding, nothing else")
def test_mask_of_four_dimensions() -> None:
    """test_modeling_common.py::test_custom_4d_attention_mask"""
    with pytest.raises(UsageError, match="attention_mask has shape"):
        make(Qwen2_5_VLForConditionalGeneration)(IDS, attention_mask=torch.ones(2, 1, 7, 7))


@pytest.mark.refused("a row without a token is an error")
def test_row_without_tokens() -> None:
    """test_modeling_common.py::test_eager_matches_sdpa_inference masks whole rows"""
    with pytest.raises(UsageError, match="row 0 of the batch has no tokens"):
        make(Qwen2_5_VLModel)(IDS, attention_mask=torch.zeros_like(IDS))


@pytest.mark.refused("a tied head is no module of its own; get_output_embeddings makes one")
def test_tied_head_is_none() -> None:
    """test_modeling_common.py::test_tied_weights_keys"""
    model = make(Qwen2_5_VLForConditionalGeneration)
    assert model.lm_head is None
    made = model.get_output_embeddings()
    assert made.weight is model.head.weight
    hidden = noise(3, 32)
    assert torch.equal(made(hidden), model.compute_logits(hidden))


@pytest.mark.refused("with any implementation: transformers gives none for sdpa")
@torch.no_grad()
def test_attention_weights_of_sdpa() -> None:
    """test_modeling_common.py::test_attention_outputs sets eager first"""
    model = make(Qwen2_5_VLForConditionalGeneration)
    shown = model(IDS, output_attentions=True)
    assert len(shown.attentions) == 4
    assert torch.allclose(shown.logits, model(IDS).logits, atol=1e-5)


@pytest.mark.refused("embeddings and ids together are for pictures; a language model takes one")
def test_ids_and_embeddings() -> None:
    """test_modeling_common.py::test_inputs_embeds"""
    model = make(Qwen2_5_VLTextModel)
    with pytest.raises(UsageError, match="either"):
        model(IDS, inputs_embeds=model.embed_tokens(IDS))


@pytest.mark.refused("weights are written and read as safetensors only; nothing is uploaded")
@pytest.mark.parametrize(
    "given",
    [
        {"safe_serialization": False},
        {"push_to_hub": True},
        {"variant": "fp16"},
        {"max_shard_size": "much"},
    ],
    ids=str,
)
def test_ways_to_save(given: dict[str, Any], tmp_path: Path) -> None:
    """test_modeling_utils.py::test_checkpoint_variant_local, test_push_to_hub and pickles"""
    with pytest.raises(OptionError):
        make(Qwen2_5_VLModel).save_pretrained(tmp_path, **given)
    assert not list(tmp_path.iterdir())


@pytest.mark.refused("pickles can run any code")
def test_pickles(tmp_path: Path) -> None:
    """test_modeling_utils.py::test_checkpoint_loading_only_pytorch_bin…"""
    make(Qwen2_5_VLModel).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickle"):
        Qwen2_5_VLModel.from_pretrained(tmp_path)
    with pytest.raises(OptionError, match="use_safetensors"):
        Qwen2_5_VLModel.from_pretrained(tmp_path, use_safetensors=False)


@pytest.mark.refused("new rows are exactly the mean, not draws around it")
def test_new_rows_are_equal() -> None:
    """modeling_utils.py::_init_added_embeddings_weights_with_mean draws from the covariance"""
    rows = make(Qwen2_5_VLTextModel).resize_token_embeddings(102).weight[99:]
    assert torch.equal(rows[0], rows[2])
