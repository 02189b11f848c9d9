"""Ordinary folders with one odd thing each: what programs write, rename, repeat and leave out.

Every case loads with the numbers of the folder that it was made from, or is refused by a name and
with a way out.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import qwen25vl
from qwen25vl import AutoProcessor, Qwen2_5_VLConfig
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.engine.options import GenerationConfig
from qwen25vl.errors import CheckpointError, ConfigError, TensorError
from qwen25vl.loading.checkpoint import model_name
from qwen25vl.loading.folder import quantize_folder
from qwen25vl.loading.scheme import Scheme

IDS = torch.tensor([[151644, 872, 198, 9707, 151645, 198, 151644, 77091, 198]])
Tensors = dict[str, torch.Tensor]
HEAD, EMBEDDINGS = "lm_head.weight", "model.embed_tokens.weight"


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path) -> Path:
    """A tied model of its own for each test."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "odd"))


def change_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    path = folder / "model.safetensors"
    tensors = {name: t.clone() for name, t in change(load_file(path)).items()}
    path.unlink()
    save_file(tensors, path, {"format": "pt"})


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return load_model(folder)(IDS).logits  # type: ignore[no-any-return]


def num_tokens(folder: Path) -> tuple[int, int]:
    """Of a question with a clip and a tool call, and of one with text alone."""
    processor = AutoProcessor.from_pretrained(folder)
    frames = [torch.full((3, 240, 320), n, dtype=torch.uint8) for n in range(4)]
    text = {"type": "text", "text": "héllo <tool_call>"}
    found = []
    for content in ([{"type": "video", "video": frames}, text], [text]):
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True
        )
        found.append(inputs.input_ids.shape[1])
    return found[0], found[1]


WRAPPED = {
    "model.": "model.{}",
    "language_model.": "{}",
    "base_model.model.": "base_model.model.{}",
    "module.": "module.{}",
    "_orig_mod.": "_orig_mod.{}",
    "module._orig_mod.": "module._orig_mod.{}",
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_wrapped_names(kind: str, folder: Path, untied_folder: Path, tmp_path: Path) -> None:
    """Names of a model that was inside of something when it was saved: a class of somebody's own,
    PEFT, DDP, torch.compile."""

    def rename(name: str) -> str:
        if kind == "language_model." and not name.startswith("visual."):
            return f"language_model.{name}"
        return WRAPPED[kind].format(name)

    expected = logits(folder)
    change_tensors(folder, lambda t: {rename(name): v for name, v in t.items()})
    assert torch.equal(logits(folder), expected)
    assert torch.equal(logits(untied_folder).isfinite(), torch.ones_like(expected).bool())
    assert model_name(rename(HEAD)) == HEAD


def test_names_inside_of_wrappers() -> None:
    assert model_name("model.layers.0._fsdp_wrapped_module.mlp._orig_mod.up_proj.weight") == (
        "model.language_model.layers.0.mlp.up_proj.weight"
    )
    assert model_name("model.model.visual.merger.ln_q.weight") == "model.visual.merger.ln_q.weight"


def test_extra_tensors(folder: Path) -> None:
    """What reward models, retrieval models and quantised caches add, said once; anything else is an
    error as before."""
    expected = logits(folder)
    extra = {
        "v_head.summary.weight": torch.ones(1, 64),
        "custom_text_proj.bias": torch.ones(8),
        "model.layers.0.self_attn.k_scale": torch.ones(1),
        "model.layers.0.mlp.up_proj.input_scale": torch.ones(1),
    }
    change_tensors(folder, lambda t: {**t, **extra})
    with pytest.warns(UserWarning, match="tensors that are not used: custom_text_proj") as caught:
        found = logits(folder)
    assert torch.equal(found, expected)
    assert len([w for w in caught if "not used" in str(w.message)]) == 1
    change_tensors(folder, lambda t: {**t, "model.layers.0.mlp.router.weight": torch.ones(2)})
    with pytest.raises(TensorError, match=r"router\.weight is unexpected"):
        load_model(folder)


def test_only_the_head_is_stored(folder: Path, tmp_path: Path) -> None:
    """Of a tied pair some programs keep the other name."""
    expected = logits(folder)
    change_tensors(
        folder, lambda t: {HEAD if name == EMBEDDINGS else name: v for name, v in t.items()}
    )
    assert torch.equal(logits(folder), expected)
    assert load_model(folder).lm_head is None
    packed = quantize_folder(folder, tmp_path / "packed", Scheme(8))
    assert load_model(packed).lm_head is None


def test_tied_but_a_different_head(folder: Path, tmp_path: Path) -> None:
    """transformers 4 dropped such a head, 5 uses it; so it is here, and it is said."""
    change_tensors(folder, lambda t: {**t, HEAD: t[EMBEDDINGS] + 0.1})
    with pytest.warns(UserWarning, match="both are stored and differ"):
        model = load_model(folder)
    with torch.no_grad():
        hidden = model.model(IDS).last_hidden_state
        expected = hidden @ model.lm_head.weight.T
        assert torch.allclose(model(IDS).logits, expected, atol=1e-4)
    with pytest.warns(UserWarning, match="both are stored and differ"):
        packed = quantize_folder(folder, tmp_path / "packed", Scheme(8))
    again = load_model(packed)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)


@pytest.mark.parametrize(("top", "nested"), [(False, True), (None, True), (True, False)])
def test_the_tie_moves(folder: Path, top: bool | None, nested: bool) -> None:
    """Saves of 4.52 to 4.57 have the key inside of text_config, and a default on top."""
    values = json.loads((folder / "config.json").read_text())
    values |= {"tie_word_embeddings": top, "text_config": {"tie_word_embeddings": nested}}
    (folder / "config.json").write_text(json.dumps(values))
    assert load_model(folder).lm_head is None


@pytest.mark.parametrize("place", ["top", "nested"])
def test_a_stale_vocabulary(place: str, folder: Path) -> None:
    """The size that the tensors have counts."""
    expected = logits(folder)
    values = json.loads((folder / "config.json").read_text())
    nested = {"text_config": {"vocab_size": 152064}} if place == "nested" else {}
    change_json(folder / "config.json", vocab_size=152064 if not nested else 1000, **nested)
    assert values["vocab_size"] == 151936
    assert torch.equal(logits(folder), expected)
    assert load_model(folder).config.text_config.vocab_size == 151936


def test_shards_without_an_index(folder: Path) -> None:
    """All parts of a numbered set are read; a set with a gap is refused."""
    expected = logits(folder)
    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    for number, part in enumerate((names[::2], names[1::2]), 1):
        file = folder / f"model-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name].clone() for name in part}, file)
    assert torch.equal(logits(folder), expected)
    file.rename(folder / "model-00003-of-00003.safetensors")
    with pytest.raises(CheckpointError, match="its files are no whole set: model-00001-of-00002"):
        load_model(folder)


def test_numbers_of_64_bits(folder: Path) -> None:
    expected = logits(folder)
    change_tensors(folder, lambda t: {name: v.double() for name, v in t.items()})
    for said in ("float32", "float64", "auto"):
        change_json(folder / "config.json", torch_dtype=said)
        assert load_model(folder).dtype == torch.float32
        assert torch.equal(logits(folder), expected)


CONFIGS: dict[str, dict[str, Any]] = {
    "type auto": {"torch_dtype": "auto"},
    "no quantisation": {"quantization_config": {}},
    "no quantisation, null": {"quantization_config": None},
    "dense": {"sparsity_config": {"format": "dense", "global_sparsity": 0.1, "ignore": []}},
    "numbers as text": {
        "hidden_size": "64", "rms_norm_eps": "1e-06", "rope_theta": "1000000.0",
        "tie_word_embeddings": "true", "image_token_id": "151655",
    },
    "rope keys of others": {
        "rope_scaling": {
            "type": "mrope", "rope_type": "default", "mrope_section": [2, 3, 3], "factor": None,
            "rope_theta": 1e6, "low_freq_factor": 1.0, "long_factor": None, "finetuned": True,
            "partial_rotary_factor": 1.0, "mrope_interleaved": False, "attention_factor": 1.0,
            "a_key_of_tomorrow": None,
        }
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", CONFIGS)
def test_config_keys_that_change_nothing(kind: str, folder: Path) -> None:
    expected = logits(folder)
    change_json(folder / "config.json", **CONFIGS[kind])
    assert torch.equal(logits(folder), expected)


@pytest.mark.parametrize(
    "key", [{"mrope_interleaved": True}, {"partial_rotary_factor": 0.5}, {"new_factor": 2.0}]
)
def test_rope_keys_that_would_change_positions(key: dict[str, Any], folder: Path) -> None:
    scaling = {"type": "mrope", "mrope_section": [2, 3, 3], **key}
    change_json(folder / "config.json", rope_scaling=scaling)
    with pytest.raises(ConfigError, match=f"rope_scaling has {next(iter(key))}"):
        load_model(folder)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"mscale": 1.0, "mscale_all_dim": 0.5},
        {"mscale": 0.7},
        {"attention_factor": 1.3, "mscale": 1.0, "mscale_all_dim": 0.5},
        {"beta_fast": 16, "beta_slow": 2, "truncate": False},
        {"factor": "4.0"},
    ],
    ids=str,
)
def test_yarn_is_that_of_transformers(keys: dict[str, Any]) -> None:
    """With each of its keys: frequencies, and the factor on cos and sin."""
    pytest.importorskip("transformers")
    from transformers import Qwen2_5_VLTextConfig as TheirConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    from qwen25vl.model.rope import text_frequencies

    sizes = {"hidden_size": 512, "num_attention_heads": 4, "num_key_value_heads": 4}
    sizes |= {"max_position_embeddings": 131072, "rope_theta": 1e6}
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768, **keys}
    own = Qwen2_5_VLConfig.from_dict(
        {**sizes, "rope_scaling": {"type": "yarn", "mrope_section": [16, 24, 24], **yarn},
         "vision_config": {"out_hidden_size": 512}}
    ).text_config  # fmt: skip
    yarn["factor"] = float(yarn["factor"])
    theirs = TheirConfig(**sizes, rope_parameters={"rope_type": "yarn", "rope_theta": 1e6, **yarn})
    expected, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs, "cpu")
    found, growth = text_frequencies(own)
    assert torch.allclose(found, expected, rtol=1e-6)
    assert growth == pytest.approx(factor)


def test_generation_keys(folder: Path) -> None:
    """−1 for "all", as other engines write it, and numbers as text."""
    path = folder / "generation_config.json"
    change_json(path, top_k=-1, temperature="0.5", repetition_penalty="1.05", do_sample="true")
    options = GenerationConfig.from_pretrained(folder)
    assert (options.top_k, options.temperature, options.do_sample) == (0, 0.5, True)
    change_json(path, top_k=-2)
    with pytest.raises(CheckpointError, match="top_k is -2"):
        load_model(folder)


def test_no_settings_for_pictures(folder: Path) -> None:
    """Those of the released models are taken, and said once; processor= names others."""
    expected = num_tokens(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.warns(UserWarning, match=r"has no preprocessor_config\.json; that of the rel") as w:
        assert num_tokens(folder) == expected
    assert len(w) == 1


def test_no_template(folder: Path) -> None:
    expected = num_tokens(folder)
    (folder / "chat_template.json").unlink()
    with pytest.warns(UserWarning, match=r"has no chat template; .*processor= or --processor"):
        assert num_tokens(folder) == expected


def test_a_processor_from_elsewhere(folder: Path, tiny_folder: Path) -> None:
    """Weights alone; without a tokenizer the error names the way out, which works."""
    for name in ("preprocessor_config.json", "chat_template.json", "tokenizer.json"):
        (folder / name).unlink()
    with (
        pytest.warns(UserWarning, match="has no preprocessor_config"),
        pytest.raises(CheckpointError, match=r"give processor= \(--pro"),
    ):
        qwen25vl.load(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        vlm = qwen25vl.load(folder, processor=tiny_folder)
    assert vlm.ask("Hello", max_new_tokens=2).usage.completion_tokens


def test_a_template_as_a_list(folder: Path) -> None:
    expected = num_tokens(folder)
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    (folder / "chat_template.json").unlink()
    named = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": template}]
    change_json(folder / "tokenizer_config.json", chat_template=named)
    assert num_tokens(folder) == expected


@pytest.mark.parametrize("how", ["bicubic", "BICUBIC", "PIL.Image.BICUBIC", "3", 3])
def test_resample_as_a_word(how: Any, folder: Path) -> None:
    expected = num_tokens(folder)
    change_json(folder / "preprocessor_config.json", resample=how)
    assert num_tokens(folder) == expected


def test_resample_in_another_way(folder: Path) -> None:
    change_json(folder / "preprocessor_config.json", resample="bilinear")
    with pytest.raises(ConfigError, match=r"is 'bilinear'; only 3 \(bicubic\) is"):
        num_tokens(folder)


def test_settings_as_text(folder: Path) -> None:
    expected = num_tokens(folder)
    size = {"shortest_edge": "3136", "longest_edge": "12845056"}
    path = folder / "preprocessor_config.json"
    change_json(path, min_pixels="3136", max_pixels="12845056", patch_size="14", size=size)
    assert num_tokens(folder) == expected


def test_padding_without_a_token(folder: Path) -> None:
    expected = num_tokens(folder)
    change_json(folder / "tokenizer_config.json", pad_token=None)
    change_json(folder / "generation_config.json", pad_token_id=None)
    assert num_tokens(folder) == expected
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    assert (tokenizer.pad_token, tokenizer.pad_token_id) == ("<|endoftext|>", 151643)
    assert len(qwen25vl.load(folder).ask("Hello", max_new_tokens=2).text) >= 0


def split_tokenizer(folder: Path) -> list[dict[str, Any]]:
    """tokenizer.json as the files of the slow tokenizer; returns the added tokens."""
    spec = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps(spec["model"]["vocab"]))
    merges = [m if isinstance(m, str) else " ".join(m) for m in spec["model"]["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return spec["added_tokens"]  # type: ignore[no-any-return]


@pytest.mark.parametrize("place", ["tokenizer_config.json", "added_tokens.json"])
def test_slow_tokenizer_files(place: str, folder: Path, tiny_folder: Path) -> None:
    """vocab.json and merges.txt, with the added tokens in one of the two files that have them."""
    added = split_tokenizer(folder)
    if place == "added_tokens.json":
        (folder / place).write_text(json.dumps({t["content"]: t["id"] for t in added}))
        change_json(folder / "tokenizer_config.json", added_tokens_decoder={})
    own, theirs = (AutoProcessor.from_pretrained(f).tokenizer for f in (folder, tiny_folder))
    text = "It's 3.14 — naïve\r\n\r\n  {x: 'y'}<|im_start|>e\u0301 <tool_call> 你好\t\n12345"
    for control in (True, False):
        assert own.encode(text, control=control) == theirs.encode(text, control=control)
    assert own.special_ids == theirs.special_ids
    assert own.spoken == theirs.spoken


def test_added_tokens_in_the_config_alone(folder: Path, tiny_folder: Path) -> None:
    spec = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps({**spec, "added_tokens": []}))
    own, theirs = (AutoProcessor.from_pretrained(f).tokenizer for f in (folder, tiny_folder))
    assert own.control_ids == theirs.control_ids
    assert own.special_ids == theirs.special_ids


def test_no_tokenizer_config(folder: Path) -> None:
    expected = num_tokens(folder)
    (folder / "tokenizer_config.json").unlink()
    assert num_tokens(folder) == expected
    tokenizer = AutoProcessor.from_pretrained(folder).tokenizer
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_bounds_that_a_save_copied(folder: Path) -> None:
    """A later save writes the pictures' bounds down as those of videos, which nobody chose: a clip
    of 4 frames has 280 visual tokens either way, not those that bounds of pictures would give."""
    import av

    path = folder.parent / "clip.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("mpeg4", rate=2)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(4):
            numbers = np.full((240, 320, 3), 60 * number, np.uint8)
            output.mux(stream.encode(av.VideoFrame.from_ndarray(numbers)))
        output.mux(stream.encode())
    chat = [{"role": "user", "content": [{"type": "video", "video": str(path)}]}]

    def count() -> int:
        processor = AutoProcessor.from_pretrained(folder)
        inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True)
        return int((inputs.input_ids == 151656).sum())

    expected = count()
    assert expected == 280
    image = json.loads((folder / "preprocessor_config.json").read_text())
    bounds = {"shortest_edge": image["min_pixels"], "longest_edge": image["max_pixels"]}
    copied = {**image, "size": bounds, "video_processor_type": "Qwen2VLVideoProcessor"}
    (folder / "video_preprocessor_config.json").write_text(json.dumps(copied))
    assert count() == expected
    change_json(folder / "video_preprocessor_config.json", size={**bounds, "longest_edge": 50176},
                min_pixels=None, max_pixels=None)  # fmt: skip
    assert count() < expected


SIZES = {
    "32B": ({"hidden_size": 5120, "intermediate_size": 27648, "num_attention_heads": 40}, 3456),
    "72B": ({"hidden_size": 8192, "intermediate_size": 29568, "num_attention_heads": 64}, 3456),
    "MiMo-VL": ({"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32}, 3456),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_shapes_of_larger_models(name: str) -> None:
    """Random weights in the widths of these models, one layer deep: widths that are no multiple of
    a power of two meet every kernel, and the parts fit each other in 4 bits too."""
    from qwen25vl import Qwen2_5_VLForConditionalGeneration
    from qwen25vl.loading.quantization import covered_linears, quantise

    sizes, vision_width = SIZES[name]
    text = {"vocab_size": 1024, "num_hidden_layers": 1, "num_key_value_heads": 8, **sizes}
    vision = {
        "depth": 1, "intermediate_size": vision_width, "out_hidden_size": sizes["hidden_size"],
        "fullatt_block_indexes": [0],
    }  # fmt: skip
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=False)
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config).to(torch.bfloat16).eval()
    ids = torch.arange(1, 20)[None]
    with torch.no_grad():
        expected = model(ids).logits.float()
        tokens = model.visual(torch.randn(16, 1176).bfloat16(), [(1, 4, 4)])
        assert tokens.shape == (4, sizes["hidden_size"])
        exact = model.float()(ids).logits
        assert (expected - exact).abs().max() < 0.05 * exact.abs().max()
        model.to(torch.bfloat16)
        linears = covered_linears(model, Scheme(4))
        layers = {path: quantise(linear, Scheme(4)) for path, linear in linears.items()}
        for path, layer in layers.items():
            model.set_submodule(path, layer)
        packed = model(ids).logits.float()
        for path, layer in layers.items():
            linears[path].weight.copy_(layer.dequantise(torch.bfloat16))
            model.set_submodule(path, linears[path])
        unpacked = model(ids).logits.float()
    similar = torch.nn.functional.cosine_similarity
    assert similar(packed, unpacked, dim=-1).min() > 0.999
    assert similar(unpacked, exact, dim=-1).min() > 0.9  # random weights suffer more than trained
