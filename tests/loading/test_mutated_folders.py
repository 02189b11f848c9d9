"""Every small file of a checkpoint, and every header, changed in thousands of ways: the model loads
and answers, or an error of the package's own names the file.

A part of the mutants runs always. 10,000: `pytest -m slow tests/loading/test_mutated_folders.py`.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from adapter_files import hub_path, linear_sizes, low_rank, write_adapter
from awq_files import write_awq
from checkpoints import write_checkpoint
from damage import faults_of
from mutants import byte_mutants, header_mutants, json_mutants
from PIL import Image
from safetensors.torch import load_file, save_file
from test_stored_formats import CASES, write_case

import qwen25vl
from qwen25vl.demo import FOLDER

NUM_QUICK, NUM_ALL = 8, 270
TEXT = {
    "vocab_size": 1046, "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
}  # fmt: skip
VISION = {"out_hidden_size": 128, "depth": 2, "intermediate_size": 61,
          "fullatt_block_indexes": [1]}  # fmt: skip
IDS = {"image_token_id": 1036, "video_token_id": 1037, "vision_start_token_id": 1033,
       "vision_end_token_id": 1034, "bos_token_id": 1024, "eos_token_id": 1026}  # fmt: skip
SAMPLING = {"bos_token_id": 1024, "pad_token_id": 1024, "eos_token_id": [1026, 1024],
            "do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.8}  # fmt: skip
PICTURE = Image.new("RGB", (56, 84), (9, 80, 200))
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
Make = Callable[[Path, Path], None]
Mutants = Callable[[bytes, int, int], Iterator[bytes]]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of two layers with the demo's tokenizer."""
    folder = tmp_path_factory.mktemp("mutants") / "source"
    write_checkpoint(folder, {"added_tokens": []}, text=TEXT, vision=VISION)
    change_json(folder / "config.json", IDS)
    change_json(folder / "generation_config.json", SAMPLING)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        shutil.copyfile(FOLDER / name, folder / name)
    return folder


def change_json(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    values = (json.loads(path.read_text()) if path.exists() else {}) | changes
    path.write_text(json.dumps(values))
    return values


def copy(source: Path, folder: Path) -> None:
    shutil.copytree(source, folder)


def with_index(source: Path, folder: Path) -> None:
    copy(source, folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    files = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    places = {name: files[number % 2] for number, name in enumerate(sorted(tensors))}
    for file in files:
        save_file({k: t for k, t in tensors.items() if places[k] == file}, folder / file)
    change_json(folder / "model.safetensors.index.json", {"weight_map": places})


def with_slow_tokenizer(source: Path, folder: Path) -> None:
    copy(source, folder)
    (folder / "tokenizer.json").unlink()
    for name in ("vocab.json", "merges.txt"):
        shutil.copyfile(FOLDER / name, folder / name)
    added = json.loads((FOLDER / "tokenizer.json").read_text())["added_tokens"]
    change_json(folder / "added_tokens.json", {token["content"]: token["id"] for token in added})


def with_processor_config(source: Path, folder: Path) -> None:
    copy(source, folder)
    image = json.loads((folder / "preprocessor_config.json").read_text())
    size = {"shortest_edge": 3136, "longest_edge": 1_000_000}
    video = image | {"fps": 2.0, "min_frames": 4, "max_frames": 768, "size": size}
    template = json.loads((folder / "chat_template.json").read_text())
    parts = {"image_processor": image, "video_processor": video, **template}
    change_json(folder / "processor_config.json", parts)
    for name in ("preprocessor_config.json", "chat_template.json"):
        (folder / name).unlink()


def with_newer_files(source: Path, folder: Path) -> None:
    copy(source, folder)
    image = json.loads((folder / "preprocessor_config.json").read_text())
    change_json(folder / "video_preprocessor_config.json", image | {"fps": 2.0})
    template = json.loads((folder / "chat_template.json").read_text())["chat_template"]
    (folder / "chat_template.jinja").write_text(template)


def with_adapter(source: Path, folder: Path) -> None:
    """An adapter's folder; loaded, its base is found by the path that it names."""
    sizes = linear_sizes(qwen25vl.load(source).model, "q_proj", "down_proj")
    tensors = low_rank({hub_path(path): size for path, size in sizes.items()})
    patterns = {"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"down_proj": 16}}
    write_adapter(
        folder, tensors, base_model_name_or_path=str(source), target_modules=["q_proj"],
        use_rslora=False, modules_to_save=None, trainable_token_indices=None, **patterns,
    )  # fmt: skip


def stored_as(name: str) -> Make:
    def write(source: Path, folder: Path) -> None:
        if name == "awq":
            write_awq(source, folder)
        else:
            write_case(name, source, folder)

    return write


def quantisation_mutants(content: bytes, seed: int, count: int) -> Iterator[bytes]:
    return json_mutants(content, seed, count, ("quantization_config",), ratio=0.95)


FILES: dict[str, tuple[Make, str, Mutants]] = {
    name: (make, name.partition(" ")[0], mutants)
    for name, make, mutants in (
        ("config.json", copy, json_mutants),
        ("generation_config.json", copy, json_mutants),
        ("preprocessor_config.json", copy, json_mutants),
        ("chat_template.json", copy, json_mutants),
        ("tokenizer_config.json", copy, json_mutants),
        ("tokenizer.json", copy, json_mutants),
        ("vocab.json", with_slow_tokenizer, json_mutants),
        ("merges.txt", with_slow_tokenizer, byte_mutants),
        ("added_tokens.json", with_slow_tokenizer, json_mutants),
        ("processor_config.json", with_processor_config, json_mutants),
        ("video_preprocessor_config.json", with_newer_files, json_mutants),
        ("chat_template.jinja", with_newer_files, byte_mutants),
        ("model.safetensors.index.json", with_index, json_mutants),
        ("model.safetensors", copy, header_mutants),
        ("adapter_config.json", with_adapter, json_mutants),
        ("adapter_model.safetensors", with_adapter, header_mutants),
    )
}
FORMATS = {"awq": stored_as("awq"), **{name: stored_as(name) for name in CASES}}
NUM_OF_FORMATS = 100  # mutants of each configuration and of each header


def check(
    make: Make, name: str, mutants: Mutants, count: int, source: Path, tmp_path: Path
) -> None:
    """No fault; and both outcomes: mutants that are all refused, or never, test nothing."""
    folder = tmp_path / "folder"
    make(source, folder)
    content = (folder / name).read_bytes()
    size = sum(path.stat().st_size for place in {source, folder} for path in place.iterdir())

    def ask(vlm: Any) -> None:
        vlm.ask("Describe a cat.", images=[PICTURE], max_new_tokens=2)

    ask(qwen25vl.load(folder))
    given = mutants(content, count, count)  # other mutants in the long run than in the short one
    faults, num_refused = faults_of(given, folder / name, lambda: qwen25vl.load(folder), ask, size)
    assert not faults, [*faults]
    assert 0 < num_refused < count or count <= NUM_QUICK


@pytest.mark.parametrize("name", FILES)
def test_changed_files(name: str, source: Path, tmp_path: Path) -> None:
    """Some of the mutants."""
    make, file, mutants = FILES[name]
    check(make, file, mutants, NUM_QUICK, source, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_thousands_of_changed_files(name: str, source: Path, tmp_path: Path) -> None:
    make, file, mutants = FILES[name]
    check(make, file, mutants, NUM_ALL, source, tmp_path)


@pytest.mark.parametrize("name", ["awq", "gptq", "W4A16 sorted", "NF4", "MLX"])
def test_changed_formats(name: str, source: Path, tmp_path: Path) -> None:
    """What a config says of quantised weights, and the tensors that it speaks of."""
    check(FORMATS[name], "config.json", quantisation_mutants, NUM_QUICK, source, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FORMATS)
def test_thousands_of_changed_formats(name: str, source: Path, tmp_path: Path) -> None:
    mutants = quantisation_mutants
    check(FORMATS[name], "config.json", mutants, NUM_OF_FORMATS, source, tmp_path / "a")
    check(
        FORMATS[name], "model.safetensors", header_mutants, NUM_OF_FORMATS, source, tmp_path / "b"
    )
