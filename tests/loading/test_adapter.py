"""Adapters in files: what is read, under which names, and what is refused by which words."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from adapter_files import PREFIX, Tensors, hub_path, linear_sizes, low_rank, write_adapter
from checkpoints import write_checkpoint
from PIL import Image
from safetensors.torch import load_file

import qwen25vl
from qwen25vl.cli import main
from qwen25vl.demo import FOLDER, folder_on_disk
from qwen25vl.ecosystem.auto import AutoModel, load_model
from qwen25vl.errors import CheckpointError, HubError, OptionError, TensorError, UsageError
from qwen25vl.loading.folder import quantize_folder
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.adapted import AdaptedLinear

IDS = torch.arange(1, 40)[None]
QUESTIONS = (
    "Describe the picture.", "How many things are there?", "What colour is the star?",
    "Where is the dog?", "Is there a carrot?", "What is at the top right?", "What is on the left?",
    "Read the text.", "Find the dog. Answer in JSON.", "Point at the star.",
)  # fmt: skip
EVERYWHERE = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "qkv")
LAYER = "model.language_model.layers.1.self_attn.q_proj"


@pytest.fixture(scope="module")
def source(tokenizer_json: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {
        "vocab_size": 96, "hidden_size": 128, "intermediate_size": 256,
        "rope_scaling": {"mrope_section": [4, 6, 6]},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("adapter") / "source"
    vision = {"out_hidden_size": 128}
    return write_checkpoint(folder, tokenizer_json, text=text, vision=vision)


@pytest.fixture
def model(source: Path) -> Any:
    return load_model(source)


@pytest.fixture
def tensors(model: Any) -> Tensors:
    return low_rank(linear_sizes(model, "q_proj", "down_proj"))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits  # type: ignore[no-any-return]


def difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def by_hand(model: Any, tensors: Tensors, scale: float) -> None:
    """Add scale · B·A to the weights of a model."""
    for key, down in tensors.items():
        if key.endswith(".lora_A.weight"):
            path = key.removeprefix(PREFIX).removesuffix(".lora_A.weight")
            up = tensors[key.replace("lora_A", "lora_B")]
            model.get_submodule(path).weight.data += scale * (up @ down)


def test_both_layouts_of_names(source: Path, model: Any, tensors: Tensors, tmp_path: Path) -> None:
    """Files of transformers before 4.52 have the hub's names, later ones the newer; a raw state
    dict leaves the adapter's name in its keys. All give the sum that the formula gives."""
    by_hand(expected := load_model(source), tensors, 2.0)
    with_name = {key.replace(".weight", ".default.weight"): v for key, v in tensors.items()}
    layouts = [tensors, {hub_path(k): v for k, v in tensors.items()}, with_name]
    for number, names in enumerate(layouts):
        name = f"of layout {number}"
        model.load_adapter(write_adapter(tmp_path / str(number), names), name)
        assert model.active_adapters() == [name]
        assert difference(logits(model), logits(expected)) < 1e-5
    assert {name.split(".")[2] for name in layouts[1]} == {"model", "visual"}
    assert difference(logits(expected), logits(load_model(source))) > 0.1


def test_adapters_come_and_go(model: Any, tensors: Tensors, tmp_path: Path) -> None:
    """The base stays as it is; each of the calls that transformers has does what it says."""
    base, own = logits(model), model.state_dict()
    for name, seed in (("a", 0), ("b", 1)):
        folder = tmp_path / name
        write_adapter(folder, low_rank(linear_sizes(model, "v_proj"), seed=seed))
        model.load_adapter(folder, name)
    of_b = logits(model)
    model.set_adapter("a")
    of_a = logits(model)
    assert not torch.equal(of_a, of_b)
    model.disable_adapters()
    assert torch.equal(logits(model), base)
    model.enable_adapters()
    assert torch.equal(logits(model), of_a)
    model.set_adapter(["b"])
    assert torch.equal(logits(model), of_b)
    model.delete_adapter("b")
    assert torch.equal(logits(model), base)
    assert model.active_adapters() == []
    assert model.state_dict().keys() == own.keys()
    for call in (lambda: model.set_adapter("b"), lambda: model.delete_adapter(["a", "b"])):
        with pytest.raises(UsageError, match="there is no adapter 'b'; loaded: a"):
            call()
    with pytest.raises(UsageError, match="already loaded"):
        model.load_adapter(tmp_path / "b", "a")
    model.load_adapter(tmp_path / "b", "b")
    with pytest.raises(UsageError, match="2 adapters are to be in force at once; one can be"):
        model.set_adapter(["a", "b"])
    model.delete_adapter(["a", "b"])
    for call in (model.disable_adapters, model.enable_adapters, model.active_adapters):
        with pytest.raises(UsageError, match="no adapter is loaded"):
            call()


def test_options_of_load_adapter(model: Any, tensors: Tensors, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", tensors)
    with pytest.raises(OptionError, match="is_trainable is True, but adapters loaded so are for"):
        model.load_adapter(folder, is_trainable=True)
    with pytest.raises(OptionError, match="there is no option 'revison'"):
        model.load_adapter(folder, revison="x")
    model.load_adapter(folder, is_trainable=False, low_cpu_mem_usage=True)
    assert model.active_adapters() == ["default"]


def test_the_type_and_the_copies_follow(source: Path, tensors: Tensors, tmp_path: Path) -> None:
    """`model.to(dtype)` after an adapter was loaded: its tensors would stay behind in another type
    and every product would fail."""
    import copy

    model = load_model(source)
    model.load_adapter(write_adapter(tmp_path / "a", tensors))
    expected = logits(model)
    twin = copy.deepcopy(model)
    model.to(torch.bfloat16)
    assert logits(model).dtype == torch.bfloat16
    assert difference(logits(model).float(), expected) < 0.05
    assert torch.equal(logits(twin), expected)


def test_replaced_layers_are_noticed(model: Any, tensors: Tensors, tmp_path: Path) -> None:
    """The adapter would go on with the layers that were there before."""
    model.load_adapter(write_adapter(tmp_path / "a", tensors))
    model.set_submodule(LAYER, torch.nn.Linear(128, 128))
    with pytest.raises(UsageError, match="layers of the model were replaced after the adapter"):
        logits(model)
    model.disable_adapters()
    assert logits(model).isfinite().all()


@pytest.mark.parametrize("bits", [8, 4])
def test_over_packed_weights(source: Path, bits: int, tmp_path: Path) -> None:
    """A layer in few bits keeps its form beside A and B, DoRA's lengths are those of its numbers,
    and merged into a folder it becomes what its codes stand for plus the change."""
    quantize_folder(source, tmp_path / "packed", Scheme(bits, 32 if bits == 4 else None))
    model = load_model(tmp_path / "packed")
    assert model.dtype == torch.float32
    sizes = linear_sizes(model, "q_proj", "down_proj")
    tensors = low_rank(sizes)
    generator = torch.Generator().manual_seed(2)
    for path, (num_outputs, _) in sizes.items():
        length = 1 + torch.rand(num_outputs, generator=generator)
        tensors[f"{PREFIX}{path}.lora_magnitude_vector"] = length
    folder = write_adapter(tmp_path / "a", tensors, use_dora=True)
    before = logits(model)
    model.load_adapter(folder)
    layer = model.in_force.get_submodule(LAYER)
    assert isinstance(layer, AdaptedLinear)
    assert layer.base_layer is model.get_submodule(LAYER)
    merged = qwen25vl.merge_adapter(folder, tmp_path / "merged", model=tmp_path / "packed")
    assert "quantization_config" not in json.loads((merged / "config.json").read_text())
    plain = logits(load_model(merged))
    assert difference(logits(model), plain) < 1e-5
    assert difference(before, plain) > 0.1


@pytest.mark.slow
def test_greedy_answers_on_an_int4_base(tmp_path: Path) -> None:
    """Twenty answers of the built-in model in 4 bits with an adapter beside it, and of the merged
    model: the same tokens. A scale that is used twice, or codes read another way when they are
    merged, ends this within a few tokens."""
    scene = Image.open(Path(__file__).parents[2] / "examples" / "scene.png")
    packed = quantize_folder(folder_on_disk(FOLDER), tmp_path / "packed", Scheme(4, 32))
    sizes = linear_sizes(load_model(packed), *EVERYWHERE)
    folder = write_adapter(tmp_path / "a", low_rank(sizes, std=0.08))
    merged = qwen25vl.merge_adapter(folder, tmp_path / "merged", model=packed)
    beside = qwen25vl.load(packed, adapter=folder, dtype="float32")
    alone = qwen25vl.load(merged, dtype="float32")
    num_changed = 0
    for question in QUESTIONS:
        for picture in (scene, scene.resize((300, 200))):
            asked: dict[str, Any] = {"images": [picture], "max_new_tokens": 16}
            text = beside.ask(question, **asked).text
            assert alone.ask(question, **asked).text == text
            num_changed += beside.ask(question, **asked, adapter="__base__").text != text
    assert num_changed >= 8


def test_a_merged_folder(source: Path, model: Any, tensors: Tensors, tmp_path: Path) -> None:
    """It has the same tensors under the hub's names, in the base's type, and stands alone."""
    folder = write_adapter(tmp_path / "a", tensors, base_model_name_or_path=str(source))
    seen = []
    qwen25vl.merge_adapter(folder, tmp_path / "m", progress=lambda *step: seen.append(step))
    stored, own = (load_file(f / "model.safetensors") for f in (tmp_path / "m", source))
    assert stored.keys() == own.keys()
    assert {k: v.dtype for k, v in stored.items()} == {k: v.dtype for k, v in own.items()}
    assert seen[-1][0] == "merge"
    assert seen[-1][1] == seen[-1][2]
    by_hand(model, tensors, 2.0)
    assert difference(logits(load_model(tmp_path / "m")), logits(model)) < 1e-6
    assert qwen25vl.load(tmp_path / "m").model.adapters.loaded == {}
    with pytest.raises(UsageError, match="already holds a checkpoint"):
        qwen25vl.merge_adapter(folder, tmp_path / "m")
    assert main(["merge", str(folder), str(tmp_path / "m"), "--force", "--offline"]) == 0


def test_another_vocabulary(source: Path, model: Any, tensors: Tensors, tmp_path: Path) -> None:
    """Embeddings that were resized in training come whole; beside the base they have no place, in
    a merged folder they have."""
    own = model.get_input_embeddings().weight.detach()
    more = torch.cat((own + 0.01, torch.ones(4, own.shape[1])))
    key = f"{PREFIX}model.embed_tokens.weight"
    folder = write_adapter(tmp_path / "a", {**tensors, key: more})
    with pytest.raises(TensorError, match=r"another vocabulary; merge_adapter writes a model"):
        model.load_adapter(folder)
    qwen25vl.merge_adapter(folder, tmp_path / "m", model=source)
    merged = load_model(tmp_path / "m")
    assert merged.config.text_config.vocab_size == 100
    assert merged.lm_head is None
    assert torch.equal(merged.get_input_embeddings().weight, more)


def test_the_base_of_an_adapter(source: Path, tensors: Tensors, tmp_path: Path) -> None:
    """An adapter in the place of a model finds its base: by a path, or by one from its own folder
    on. Otherwise the error says how to name it."""
    for place in (str(source), "../source"):
        shutil.copytree(source, tmp_path / "source", dirs_exist_ok=True)
        folder = write_adapter(tmp_path / "a", tensors, base_model_name_or_path=place)
        vlm = qwen25vl.load(folder)
        assert vlm.model.active_adapters() == ["default"]
        assert vlm.processor.tokenizer is not None
        assert load_model(folder).active_adapters() == ["default"]
    with pytest.raises(UsageError, match="is an adapter; load it with AutoModelForImageTextToText"):
        AutoModel.from_pretrained(folder)
    way_out = re.escape(f"-m BASE --adapter {folder}")
    for place, words, error in (
        ("", "names no base_model_name_or_path", CheckpointError),
        ("/nowhere/model", "its base /nowhere/model is not there", CheckpointError),
        ("owner/nothing-there", "is not complete in the local cache", HubError),
    ):
        write_adapter(folder, tensors, base_model_name_or_path=place)
        with pytest.raises(error, match=f"{words}.*{way_out}"):
            qwen25vl.load(folder, local_files_only=True)


def test_a_folder_with_both(source: Path, tensors: Tensors, tmp_path: Path) -> None:
    """A model with its adapter in one folder: transformers applies it, and so it is here, once."""
    folder = tmp_path / "both"
    shutil.copytree(source, folder)
    write_adapter(folder, tensors)
    other = write_adapter(tmp_path / "other", tensors)
    vlm = qwen25vl.load(folder, adapter={"other": other})
    assert [*vlm.model.adapters.loaded] == ["default", "other"]
    assert vlm.model.active_adapters() == ["default"]


CONFIGS = [
    ({"peft_type": "IA3"}, r"peft_type is 'IA3'; only 'LORA' adapters are read; merge it into"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is True; it changes what is computed"),
    ({"use_qalora": True}, "use_qalora is True; it changes what is computed"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is .*changes what is computed"),
    ({"layer_replication": [[0, 2]]}, "layer_replication is .*changes what is computed"),
    ({"megatron_config": {"a": 1}}, "megatron_config is .*changes what is computed"),
    ({"target_parameters": ["x"]}, "target_parameters is .*changes what is computed"),
    ({"a_key_of_tomorrow": 3}, "a_key_of_tomorrow is 3; it changes what is computed"),
    (
        {"init_lora_weights": "pissa_niter_4"},
        "init_lora_weights is 'pissa_niter_4'; training began",
    ),
    ({"init_lora_weights": "olora"}, "path_initial_model_for_weight_conversion"),
    ({"r": 0}, "r is 0; it must be a number above 0"),
    ({"lora_alpha": "8"}, "lora_alpha is '8'; it must be a number above 0"),
    ({"rank_pattern": {"(": 2}}, "is not a regular expression"),
    ({"use_dora": "yes"}, "use_dora is 'yes'; expected true or false"),
    ({"bias": "some"}, "bias is 'some'; expected 'none'"),
    ({"trainable_token_indices": ["a"]}, "trainable_token_indices is .*a list of token ids"),
]


@pytest.mark.parametrize(("values", "words"), CONFIGS, ids=lambda value: str(value)[:30])
def test_refused_configs(
    values: dict[str, Any], words: str, model: Any, tensors: Tensors, tmp_path: Path
) -> None:
    """What changes the mathematics and is not understood: with these passed over, the model would
    answer with other numbers than its trainer saw."""
    with pytest.raises(CheckpointError, match=words):
        model.load_adapter(write_adapter(tmp_path / "a", tensors, **values))


def test_keys_of_training_change_nothing(model: Any, tensors: Tensors, tmp_path: Path) -> None:
    values = {
        "target_modules": ["q_proj"], "lora_dropout": 0.1, "task_type": "FEATURE_EXTRACTION",
        "init_lora_weights": "gaussian", "exclude_modules": "x", "inference_mode": True,
        "layer_replication": None, "megatron_config": None, "use_qalora": False, "loftq_config": {},
        "peft_type": "PeftType.LORA", "corda_config": None, "modules_to_save": None,
    }  # fmt: skip
    model.load_adapter(write_adapter(tmp_path / "plain", tensors), "plain")
    expected = logits(model)
    model.load_adapter(write_adapter(tmp_path / "a", tensors, **values), "a")
    assert torch.equal(logits(model), expected)


def without(tensors: Tensors, end: str) -> Tensors:
    return {key: value for key, value in tensors.items() if not key.endswith(f"q_proj.{end}")}


A_KEY, B_KEY = (f"{PREFIX}{LAYER}.lora_{part}.weight" for part in "AB")
FILES: list[tuple[Any, dict[str, Any], str]] = [
    (lambda t: without(t, "lora_B.weight"), {}, "q_proj has only one of lora_A and lora_B"),
    (lambda t: {**t, f"{PREFIX}{LAYER}.lora_C": torch.ones(4)}, {}, "lora_C is not understood"),
    (lambda t: {**t, f"{PREFIX}v_head.weight": torch.ones(3)}, {}, "v_head is no layer of this"),
    (
        lambda t: {**t, f"{PREFIX}custom_text_proj.lora_A.weight": torch.ones(4, 8),
                   f"{PREFIX}custom_text_proj.lora_B.weight": torch.ones(8, 4)},
        {}, "custom_text_proj is no layer of this model",
    ),
    (lambda t: t, {"r": 8}, r"q_proj has a rank of 4 and 4, adapter_config.json makes it 8"),
    (lambda t: t, {"use_dora": True}, "q_proj lacks a lora_magnitude_vector, but use_dora is true"),
    (
        lambda t: {**t, f"{PREFIX}{LAYER}.lora_magnitude_vector": torch.ones(128)},
        {}, "q_proj has a lora_magnitude_vector, but use_dora is false",
    ),
    (lambda t: {**t, A_KEY: torch.full((4, 128), torch.nan)}, {}, "numbers that are not finite"),
    (lambda t: {**t, A_KEY: torch.ones(4, 64)}, {}, r"lora_A is \[4, 64\], the model's layer is"),
    (lambda t: {**t, B_KEY: torch.ones(64, 4)}, {}, r"lora_B is \[64, 4\], the model's layer is"),
    (lambda t: t, {"lora_bias": True}, "lora_bias is true, but no lora_B.bias is there"),
    (lambda t: t, {"trainable_token_indices": [3]}, "the new rows for trainable_token_indices are"),
    (
        lambda t: {**t, f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta":
                   torch.ones(2, 128)},
        {"trainable_token_indices": [3]}, "has 2 new rows, trainable_token_indices names 1 tokens",
    ),
    (
        lambda t: {**t, f"{PREFIX}model.embed_tokens.token_adapter.trainable_tokens_delta":
                   torch.ones(1, 128)},
        {"trainable_token_indices": [300]}, "tokens outside of the vocabulary of 96",
    ),
    (
        lambda t: {**t, f"{PREFIX}{LAYER.replace('self_attn.q', 'mlp.gate')}.base_layer.bias":
                   torch.ones(256)},
        {}, "gate_proj has a bias, the model's layer has none",
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("change", "config", "words"), FILES, ids=[words[:40] for _, _, words in FILES]
)
def test_refused_tensors(
    change: Any, config: dict[str, Any], words: str, model: Any, tensors: Tensors, tmp_path: Path
) -> None:
    """Nothing that is in a file is dropped without a word, and nothing half is used."""
    folder = write_adapter(tmp_path / "a", change(tensors), **config)
    with pytest.raises(TensorError, match=words):
        model.load_adapter(folder)
    assert model.adapters.loaded == {}


def test_missing_and_damaged_files(model: Any, tensors: Tensors, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        model.load_adapter("./nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"not a LoRA adapter: it has no adapter_config.json"):
        model.load_adapter(tmp_path / "empty")
    folder = write_adapter(tmp_path / "a", tensors)
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match="damaged or cut off"):
        model.load_adapter(folder)
    file.unlink()
    with pytest.raises(CheckpointError, match=r"lacks adapter_model.safetensors"):
        model.load_adapter(folder)
    (folder / "adapter_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="pickle file, which can run any code when opened"):
        model.load_adapter(folder)


def test_what_is_promised_and_not_there(model: Any, tensors: Tensors, tmp_path: Path) -> None:
    """Some versions of PEFT forgot the biases, and some lists name modules that no model has."""
    folder = write_adapter(tmp_path / "a", tensors, bias="lora_only", modules_to_save=["score"])
    with pytest.warns(UserWarning, match="modules_to_save names score, but the adapter has none"):
        model.load_adapter(folder, "a")
    with pytest.warns(UserWarning, match="bias is 'lora_only', but the adapter has no biases"):
        model.load_adapter(folder, "b")


def test_the_whole_matrix_beside_an_embedding(model: Any, tmp_path: Path) -> None:
    """PEFT writes the base's embeddings with their adapter; they change nothing."""
    width = model.config.text_config.hidden_size
    key = f"{PREFIX}model.language_model.embed_tokens"
    changes = {
        f"{key}.lora_embedding_A": torch.randn(4, 96),
        f"{key}.lora_embedding_B": 0.1 * torch.randn(width, 4),
    }
    model.load_adapter(write_adapter(tmp_path / "a", changes), "a")
    expected = logits(model)
    own = {f"{key}.base_layer.weight": model.get_input_embeddings().weight.detach().clone()}
    model.load_adapter(write_adapter(tmp_path / "b", {**changes, **own}), "b")
    assert torch.equal(logits(model), expected)
    assert not torch.equal(model.in_force.lm_head(torch.ones(1, width)), torch.zeros(1, 96))
    moved = {name: weight + 1 for name, weight in own.items()}
    model.load_adapter(write_adapter(tmp_path / "c", {**changes, **moved}), "c")
    assert not torch.equal(logits(model), expected)
