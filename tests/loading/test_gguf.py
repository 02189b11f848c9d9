"""GGUF files: the numbers that they stand for, what belongs to them, and what is refused."""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from checkpoints import CHAT_TEMPLATE, TEXT, VISION
from gguf_files import text_metadata, write_gguf
from gguf_models import SIZES, TOKENIZER, VISION_SIZES, make_tensors, write_model, write_plain
from safetensors.torch import load_file
from torch import nn

from qwen25vl import load
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
from qwen25vl.errors import CheckpointError, TensorError
from qwen25vl.hub import resolve_folder
from qwen25vl.loading.checkpoint import Checkpoint, model_name
from qwen25vl.loading.formats import gguf
from qwen25vl.loading.gguf_weights import GgufWeights, hub_name_of
from qwen25vl.model.packed_linear import Int4Linear
from qwen25vl.processing.tokenizer import Tokenizer
from qwen25vl.single_file.gguf_files import choose_files, describe_gguf
from qwen25vl.single_file.gguf_header import read_header
from qwen25vl.single_file.gguf_tokenizer import read_tokenizer

pytestmark = pytest.mark.usefixtures("own_cache")

IDS = torch.arange(1, 40)[None]
GOLDEN = Path(__file__).parent / "golden"
CASES: dict[str, tuple[tuple[str, ...], dict[str, Any]]] = {
    "Q4_K_M": (("Q4_K", "Q6_K", "Q5_0", "Q8_0"), {"vision_kind": "F16"}),
    "untied": (("Q4_1", "Q4_0", "Q5_1", "Q5_K"), {"vision_kind": "Q8_0", "tied": False}),
    "ollama": (("Q2_K", "Q3_K", "IQ4_NL", "IQ4_XS"), {"vision_kind": "BF16", "ollama": True}),
    "plain": (("F16", "BF16", "F32"), {"vision_kind": "F32", "tied": False}),
}


def logits_of(model: nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        return model(IDS).logits.float()  # type: ignore[no-any-return]


def answer_of(model: Any) -> list[int]:
    return model.generate(IDS[:, :8], max_new_tokens=8, do_sample=False)[0].tolist()  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES)
def test_numbers_are_what_their_maker_meant(case: str, tmp_path: Path) -> None:
    """Every tensor, logits and greedy tokens against the same numbers in an ordinary folder."""
    kinds, options = CASES[case]
    path, meant = write_model(tmp_path, kinds, **options)
    model = load_model(path, dtype="float32")
    plain = load_model(write_plain(tmp_path / "plain", meant, tied=options.get("tied", True)))
    state, wanted = model.state_dict(), plain.state_dict()
    for name, tensor in wanted.items():
        if name in state:
            assert torch.equal(state[name], tensor), name
        else:
            layer = model.get_submodule(name.removesuffix(".weight"))
            assert isinstance(layer, Int4Linear)
            assert torch.equal(layer.dequantise(torch.float32), tensor), name
    made, other = logits_of(model), logits_of(plain)
    assert float((made - other).norm() / other.norm()) < 1e-5
    assert answer_of(model) == answer_of(plain)


def test_everything_around_the_numbers(tmp_path: Path) -> None:
    """Sizes, ids of slots, tokenizer, template and settings for pictures come from the two files:
    a question with a picture has the same ids and the same answer as with an ordinary folder."""
    path, meant = write_model(tmp_path, ("BF16",), "F32")
    plain = write_plain(tmp_path / "plain", meant)
    picture = np.zeros((56, 84, 3), np.uint8)
    preprocessor = json.loads((plain / "preprocessor_config.json").read_text())
    preprocessor |= {"min_pixels": 3136, "max_pixels": 12845056}
    (plain / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    ours, theirs = load(path, dtype="float32"), load(plain)
    options = {"images": [picture], "max_new_tokens": 6, "temperature": 0.0}
    one, other = (vlm.ask("What is it?", **options) for vlm in (ours, theirs))
    assert one.text == other.text
    assert one.usage == other.usage
    config = ours.model.config
    assert config.text_config.to_dict() == theirs.model.config.text_config.to_dict()
    vision = theirs.model.config.vision_config.to_dict()
    del vision["spatial_patch_size"]  # the same as patch_size
    assert config.vision_config.to_dict() == vision
    assert (config.image_token_id, config.video_token_id) == (1036, 1037)
    assert ours.processor.chat_template == CHAT_TEMPLATE
    assert list(ours.model.generation_config.eos_token_id) == [1026, 1024]


def test_the_official_vocabulary(tokenizer_json: dict[str, Any], tmp_path: Path) -> None:
    """Ids, special tokens and padding rows; converters call some tokens control tokens that the
    hub's file shows to the reader."""
    config = TEXT | {"vocab_size": 151936}
    metadata = text_metadata(config, tokenizer_json)
    made, made_config = read_tokenizer(metadata, Path("model.gguf"))
    assert made["added_tokens"] == tokenizer_json["added_tokens"]
    assert made["model"]["vocab"] == tokenizer_json["model"]["vocab"]
    for name, value in (("tokenizer.json", made), ("tokenizer_config.json", made_config)):
        (tmp_path / name).write_text(json.dumps(value))
    (tmp_path / "official").mkdir()
    (tmp_path / "official" / "tokenizer.json").write_text(json.dumps(tokenizer_json))
    shutil.copyfile(tmp_path / "tokenizer_config.json", tmp_path / "official/tokenizer_config.json")
    ours, official = (Tokenizer.from_folder(folder) for folder in (tmp_path, tmp_path / "official"))
    for text in (
        "Hello, world!\n\n  x = 1234",
        "Ünïcode — 漢字 🙂 e\u0301",
        "<tool_call>\r\n\t'll I'd",
    ):
        assert ours.encode(text) == official.encode(text)
        assert ours.encode(text, control=True) == official.encode(text, control=True)
    assert ours.special_ids == official.special_ids
    assert ours.decode([151700]) == ""


def test_an_old_template_without_pictures(tmp_path: Path) -> None:
    """Older files have the one for tools, in which pictures vanish."""
    template = {"tokenizer.chat_template": "{{ messages[0]['content'] }}"}
    path, _ = write_model(tmp_path, ("F16",), metadata=template)
    assert Qwen2_5_VLProcessor.from_pretrained(path).chat_template == CHAT_TEMPLATE
    own = {"tokenizer.chat_template": "{# mine #}" + CHAT_TEMPLATE}
    path, _ = write_model(tmp_path / "own", ("F16",), metadata=own)
    assert Qwen2_5_VLProcessor.from_pretrained(path).chat_template.startswith("{# mine #}")
    (tmp_path / "own" / "chat_template.jinja").write_text("{# beside #}" + CHAT_TEMPLATE)
    assert Qwen2_5_VLProcessor.from_pretrained(path).chat_template.startswith("{# beside #}")


def test_old_names_of_the_vision_encoder(tmp_path: Path) -> None:
    """up_proj and down_proj under each other's names, feed_forward_length 0, and the blocks with
    full attention as a list: read as they are named, the encoder sees something else."""
    new, _ = write_model(tmp_path / "new", ("F16",))
    old, _ = write_model(tmp_path / "old", ("F16",))
    sizes = VISION | VISION_SIZES
    _, vision, _ = make_tensors(("F16",), "F16", tied=True, ollama=False, seed=0)
    swap = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"}
    swapped = {
        ".".join(swap.get(part, part) for part in name.split(".")): entry
        for name, entry in vision.items()
    }
    metadata = read_header(tmp_path / "new" / "mmproj.gguf").metadata
    metadata = {name: value for name, value in metadata.items() if "n_wa_pattern" not in name}
    metadata |= {
        "clip.vision.feed_forward_length": 0,
        "clip.vision.fullatt_block_indexes": sizes["fullatt_block_indexes"],
    }
    write_gguf(tmp_path / "old" / "mmproj.gguf", metadata, swapped)
    ours, theirs = load_model(old), load_model(new)
    assert ours.config.vision_config.to_dict() == theirs.config.vision_config.to_dict()
    wanted = theirs.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in ours.state_dict().items())


def test_four_bits_are_kept(tmp_path: Path) -> None:
    """Q4_0 is what the kernel for 4 bits reads: no number changes, and it takes no more memory.
    Q4_1 is kept where its offsets are whole multiples of the scales, as after AWQ."""
    path, meant = write_model(tmp_path, ("Q4_0",))
    model = load_model(path)
    kept = [path for path, m in model.named_modules() if isinstance(m, Int4Linear)]
    assert len(kept) == 14
    name = "model.layers.1.mlp.down_proj"
    layer = model.get_submodule(model_name(name))
    assert layer.group_size == 32
    assert torch.equal(layer.dequantise(torch.float32), meant[f"{name}.weight"])
    text, _, meant = make_tensors(("Q4_1",), "F16", tied=True, ollama=False, seed=3)
    key = "blk.1.ffn_down.weight"
    shape, kind, blocks = text[key]
    blocks = blocks.reshape(-1, 20).copy()
    zeros = np.arange(len(blocks))[:, None] % 16
    exact = np.float16(0.015625)  # a power of two: every multiple is a float16
    blocks[:, :2] = np.full((len(blocks), 1), exact).view(np.uint8)
    blocks[:, 2:4] = (-exact * zeros).astype(np.float16).view(np.uint8)
    text[key] = shape, kind, blocks.reshape(-1)
    write_gguf(path, text_metadata(TEXT | SIZES, TOKENIZER), text)
    model = load_model(path)
    kept = {path for path, m in model.named_modules() if isinstance(m, Int4Linear)}
    assert kept == {model_name(name)}
    layer = model.get_submodule(model_name(name))
    codes = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1).astype(np.float32)
    wanted = ((codes - zeros) * np.float32(exact)).reshape(shape)
    assert torch.equal(layer.dequantise(torch.float32), torch.from_numpy(wanted))


def test_it_says_what_becomes_of_the_numbers(tmp_path: Path) -> None:
    """More memory than the file has, and a second rounding, are never a surprise."""
    path, _ = write_model(tmp_path, ("Q4_K", "Q6_K"))
    with pytest.warns(
        UserWarning, match="15 matrices stored as Q4_K, Q6_K are worked out to bfl"
    ) as w:
        load_model(path)
    assert w[0].filename == __file__
    assert "GB of memory" in str(w[0].message)
    with pytest.warns(UserWarning, match=r"quantised again, to 4 bits; .* by about [5-9]\.?\d* %"):
        load_model(path, quantization_config="int4")
    with pytest.warns(UserWarning, match=r"to 8 bits; .* by about 0\.\d* %"):
        load_model(path, quantization_config="int8")
    kept, _ = write_model(tmp_path / "kept", ("F16",), "F16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(kept)


def test_blocks_and_threads_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are worked out block by block; the last block is smaller."""
    path, _ = write_model(tmp_path, ("Q4_0", "Q4_K", "Q6_K", "Q8_0"))
    wanted = load_model(path).state_dict()
    monkeypatch.setattr("qwen25vl.loading.dequantised.NUMBERS_AT_A_TIME", 3 * 256)
    monkeypatch.setattr(gguf, "ROWS_AT_A_TIME", 7)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        state = load_model(path).state_dict()
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)


def test_converted_by_llama_cpp() -> None:
    """The converter's own names, axes and types: a vision encoder beside the tensors that it was
    made of, and a decoder layer in Q4_K_M as its quantiser mixes types."""
    vision = checkpoint_of(GOLDEN / "gguf_mmproj_micro_f16.gguf")
    gguf.expect_layers(Bare(vision), vision)
    hub = load_file(GOLDEN / "gguf_mmproj_micro_hf.safetensors")
    assert {model_name(name) for name in hub} == vision.stored.keys()
    for name, tensor in hub.items():
        made = vision.read_once(model_name(name), torch.float32).float()
        assert made.shape == tensor.shape
        assert torch.allclose(made, tensor.float(), rtol=1e-3, atol=1e-7), name  # of float16
    text = checkpoint_of(GOLDEN / "gguf_text_micro_q4km.gguf")
    gguf.expect_layers(nn.Module(), text)
    wanted = load_file(GOLDEN / "gguf_text_micro_q4km_dequantised.safetensors")
    for name, tensor in wanted.items():
        made = text.read_once(model_name(hub_name_of(name)), torch.float32)[: len(tensor)]
        assert torch.equal(made.to(tensor.dtype), tensor), name


def checkpoint_of(path: Path) -> Checkpoint:
    """The tensors of one file, as a folder has them."""
    checkpoint = Checkpoint.__new__(Checkpoint)
    checkpoint.folder, checkpoint.stored, checkpoint.unpacked_shapes = path.parent, {}, {}
    checkpoint.open_files = {path: (file := GgufWeights(path))}
    for name in file.keys():  # noqa: SIM118
        checkpoint.add(path, name, file.get_slice(name))
    return checkpoint


class Bare(nn.Module):
    """Linear layers at the places of the vision encoder's q, k and v."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        self.paths = [key.removesuffix(".q.weight") for key in checkpoint.stored
                      if key.endswith(".q.weight")]  # fmt: skip

    def named_modules(self, *args: Any, **options: Any) -> Any:
        with torch.device("meta"):
            yield from ((path, nn.Linear(32, 96)) for path in self.paths)


def test_names_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file, its folder, and Ollama's name lead to the same model."""
    path, _ = write_model(tmp_path / "two", ("F16",))
    folder = resolve_folder(path)
    assert resolve_folder(path.parent) == folder
    assert resolve_folder(folder) == folder
    assert not [p for p in folder.iterdir() if not p.is_symlink() and p.suffix == ".gguf"]
    blob, _ = write_model(tmp_path / "one", ("F16",), ollama=True)
    store = tmp_path / "models"
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    digest = "sha256:" + "0a" * 32
    (store / "blobs").mkdir(parents=True)
    blob.rename(store / "blobs" / digest.replace(":", "-"))
    manifest = store / "manifests/registry.ollama.ai/library/qwen2.5vl/7b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": digest}
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": [{"mediaType": "x"}, layer]}))
    assert load_model("qwen2.5vl:7b").config.vision_config.depth == VISION["depth"]
    with pytest.raises(CheckpointError, match=r"run `ollama pull qwen2.5vl:3b`"):
        resolve_folder("qwen2.5vl:3b")
    adapter = {"mediaType": "application/vnd.ollama.image.adapter", "digest": digest}
    manifest.write_text(json.dumps({"layers": [layer, adapter]}))
    with pytest.raises(CheckpointError, match="an adapter in Ollama's own form"):
        resolve_folder("qwen2.5vl:7b")
    manifest.write_text("{}")
    with pytest.raises(CheckpointError, match="names no model"):
        resolve_folder("qwen2.5vl:7b")


def test_descriptions_are_kept_and_never_stale(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that was replaced by another of the same name must not get the old tokenizer; where
    nothing can be kept, a temporary folder serves."""
    path, _ = write_model(tmp_path, ("F16",))
    first = resolve_folder(path)
    written = (first / "config.json").stat().st_mtime_ns
    assert resolve_folder(path) == first
    assert (first / "config.json").stat().st_mtime_ns == written
    template = {"tokenizer.chat_template": "{# other #}" + CHAT_TEMPLATE}
    write_model(tmp_path, ("F16",), metadata=template)
    second = resolve_folder(path)
    assert second != first
    assert Qwen2_5_VLProcessor.from_pretrained(second).chat_template.startswith("{# other #}")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    third = resolve_folder(path)
    assert third not in (first, second)
    assert load_model(third).config.text_config.hidden_size == 256
    assert [name for name in (tmp_path / "cache/qwen25vl/files").iterdir()
            if name.name.startswith(".")] == []  # fmt: skip


def test_two_files_of_ollama(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What Ollama made of a foreign repository has the vision encoder in a blob of its own."""
    path, _ = write_model(tmp_path, ("F16",))
    store = tmp_path / "models"
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    (store / "blobs").mkdir(parents=True)
    layers = []
    for number, (file, kind) in enumerate(
        ((path, "model"), (tmp_path / "mmproj.gguf", "projector"))
    ):
        digest = f"{number}" * 64
        file.rename(store / "blobs" / f"sha256-{digest}")
        media_type = f"application/vnd.ollama.image.{kind}"
        layers.append({"mediaType": media_type, "digest": f"sha256:{digest}"})
    manifest = store / "manifests/hf.co/user/repo-GGUF/Q4_K_M"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"layers": layers}))
    assert load_model("hf.co/user/repo-GGUF:Q4_K_M").config.text_config.hidden_size == 256


REPOSITORY = [
    "README.md", "Qwen2.5-VL-7B-Instruct-Q4_K_M.gguf", "Qwen2.5-VL-7B-Instruct-Q4_K_S.gguf",
    "Qwen2.5-VL-7B-Instruct-UD-Q4_K_XL.gguf", "Qwen2.5-VL-7B-Instruct-Q8_0.gguf",
    "BF16/Qwen-BF16-00001-of-00002.gguf", "BF16/Qwen-BF16-00002-of-00002.gguf",
    "mmproj-F16.gguf", "mmproj-Q8_0.gguf", "mmproj-BF16.gguf",
]  # fmt: skip


def test_hub_names_with_a_type() -> None:
    """Q4_K is neither Q4_K_M nor Q4_K_S; a vision encoder is not a language model of its type."""
    name = "Qwen2.5-VL-7B-Instruct-{}.gguf"
    assert choose_files(REPOSITORY, "Q4_K_M", "a/b") == (
        [name.format("Q4_K_M")],
        "mmproj-BF16.gguf",
    )
    assert choose_files(REPOSITORY, "q8_0", "a/b")[0] == [name.format("Q8_0")]
    assert choose_files(REPOSITORY, "BF16", "a/b")[0] == REPOSITORY[5:7]
    assert choose_files(REPOSITORY[:3], "Q4_K_S", "a/b")[1] is None
    for kind in ("Q4_K", "Q5_K_M", "Q4"):
        with pytest.raises(OSError, match=rf"a/b has none of the kind '{kind}'; it has .*Q4_K_M"):
            choose_files(REPOSITORY, kind, "a/b")


def test_hub_name_from_the_cache(tmp_path: Path) -> None:
    """Offline, what was downloaded once loads again."""
    snapshot = tmp_path / "hub" / "models--user--repo" / "snapshots" / ("a" * 40)
    write_model(snapshot, ("F16",))
    (snapshot / "model.gguf").rename(snapshot / "model-Q4_K_M.gguf")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    folder = resolve_folder("user/repo:Q4_K_M", cache_dir=tmp_path / "hub")
    assert load_model(folder).config.text_config.hidden_size == 256
    (snapshot.parents[1]).rename(tmp_path / "hub" / "models--user--repo-GGUF")
    assert resolve_folder("user/repo-GGUF", cache_dir=tmp_path / "hub").is_dir()
    (tmp_path / "hub" / "models--user--repo-GGUF").rename(snapshot.parents[1])
    with pytest.raises(OSError, match=r"has none of the kind 'Q8_0'; it has model-Q4_K_M.gguf"):
        resolve_folder("user/repo:Q8_0", cache_dir=tmp_path / "hub", local_files_only=True)


def test_split_files(tmp_path: Path) -> None:
    """Large models come in parts; any of them names the model, and one that is missing is named."""
    path, meant = write_model(tmp_path, ("F16",))
    header = read_header(path)
    names = list(header.tensors)
    text, _, _ = make_tensors(("F16",), "F16", tied=True, ollama=False, seed=0)
    parts = [names[: len(names) // 2], names[len(names) // 2 :]]
    for number, part in enumerate(parts, 1):
        about = header.metadata if number == 1 else {"general.architecture": "qwen2vl"}
        about = {**about, "split.no": number - 1, "split.count": 2}
        write_gguf(tmp_path / f"big-{number:05d}-of-00002.gguf", about,
                   {name: text[name] for name in part})  # fmt: skip
    path.unlink()
    model = load_model(tmp_path)
    for name, tensor in meant.items():
        assert torch.allclose(model.state_dict()[model_name(name)].float(), tensor, rtol=0.01)
    (tmp_path / "big-00002-of-00002.gguf").unlink()
    with pytest.raises(CheckpointError, match=r"missing are big-00002-of-00002\.gguf"):
        load_model(tmp_path / "big-00001-of-00002.gguf")


def test_what_belongs_to_another_model(tmp_path: Path) -> None:
    """Qwen2-VL has the same architecture name; its projector tells it apart."""
    path, _ = write_model(tmp_path / "a", ("F16",), metadata={"general.architecture": "llama"})
    with pytest.raises(CheckpointError, match="a model of the kind 'llama'; this package runs"):
        resolve_folder(path)
    other = {"clip.projector_type": "qwen2vl_merger"}
    path, _ = write_model(tmp_path / "b", ("F16",), vision_changes=other)
    with pytest.raises(CheckpointError, match="no vision encoder of it lies beside it"):
        resolve_folder(path)
    with pytest.raises(CheckpointError, match=r"has a projector of the type 'qwen2vl_merger'"):
        describe_gguf(path, tmp_path / "b" / "mmproj.gguf")
    path, _ = write_model(tmp_path / "c", ("F16",))
    with pytest.raises(CheckpointError, match="holds the vision encoder alone"):
        resolve_folder(tmp_path / "c" / "mmproj.gguf")
    (tmp_path / "c" / "mmproj.gguf").unlink()
    with pytest.raises(CheckpointError, match="download the repository's mmproj file"):
        resolve_folder(path)
    write_model(tmp_path / "d", ("F16",))
    shutil.copyfile(tmp_path / "d/model.gguf", tmp_path / "d/other.gguf")
    with pytest.raises(CheckpointError, match=r"several models; name one.*model\.gguf, other"):
        resolve_folder(tmp_path / "d")
    (tmp_path / "old.bin").write_bytes(b"tjgg" + bytes(40))
    with pytest.raises(CheckpointError, match="pickle"):
        resolve_folder(tmp_path / "old.bin")
    (tmp_path / "old.ggml").write_bytes(b"tjgg" + bytes(40))
    with pytest.raises(CheckpointError, match="an old form of GGUF"):
        resolve_folder(tmp_path / "old.ggml")


def test_types_that_are_not_read(tmp_path: Path) -> None:
    """By tensor and type, with what to take instead."""
    path, _ = write_model(tmp_path, ("F16",))
    header = read_header(path)
    text, _, _ = make_tensors(("F16",), "F16", tied=True, ollama=False, seed=0)
    shape = text["blk.0.ffn_up.weight"][0]
    text["blk.0.ffn_up.weight"] = (
        shape,
        "IQ1_S",
        np.zeros(shape[0] * shape[1] // 256 * 50, np.uint8),
    )
    write_gguf(path, header.metadata, text)
    with pytest.raises(
        TensorError, match=r"blk\.0\.ffn_up.*IQ1_S.*take a file in Q4_K_M|up_proj.*IQ1_S"
    ):
        load_model(path)


def test_numbers_that_are_none(tmp_path: Path) -> None:
    """A scale that is not a number would spread over every answer."""
    for kind, place in (("Q4_K", 0), ("Q8_0", 0), ("Q4_0", 0), ("Q6_K", 208)):
        path, _ = write_model(tmp_path / kind, (kind,))
        start = read_header(path).tensors["blk.1.ffn_down.weight"].start
        content = bytearray(path.read_bytes())
        content[start + place : start + place + 2] = b"\x00\x7e"
        path.write_bytes(content)
        with pytest.raises(TensorError, match="finite"):
            load_model(path)


def test_another_alignment(tmp_path: Path) -> None:
    """Where the data begin depends on a key."""
    path, _ = write_model(tmp_path, ("F32",))
    wanted = load_model(path).state_dict()
    text, _, _ = make_tensors(("F32",), "F32", tied=True, ollama=False, seed=0)
    write_gguf(path, read_header(path).metadata, text, alignment=256)
    state = load_model(path).state_dict()
    assert all(torch.equal(state[name], wanted[name]) for name in wanted)
