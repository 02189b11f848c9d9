"""What config.json may say of quantised weights:
malformed ones are refused by name, foreign ones understood."""

import copy
import json
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import write_checkpoint
from safetensors.torch import load_file, save_file

from qwen25vl.ecosystem.auto import load_model
from qwen25vl.errors import CheckpointError
from qwen25vl.loading.folder import quantize_folder
from qwen25vl.loading.formats.compressed_config import read_groups
from qwen25vl.loading.scheme import Scheme
from qwen25vl.model.packed_linear import Int8Linear, PackedLinear

INT8, INT4 = Scheme(8), Scheme(4, group_size=32)
WITH_VISION = Scheme(4, group_size=32, vision=True)
FOLDER = Path("somewhere")
ATTENTION = "re:.*self_attn[.].*"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = {"vocab_size": 96}
    folder = tmp_path_factory.mktemp("config") / "source"
    return write_checkpoint(
        folder, {"added_tokens": []}, tied=False, dtype=torch.bfloat16, text=text
    )


@pytest.fixture(scope="module")
def folders(source: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    schemes = {"int8": INT8, "int4": INT4, "int4+vision": WITH_VISION}
    target = tmp_path_factory.mktemp("config")
    return {
        name: quantize_folder(source, target / name, scheme) for name, scheme in schemes.items()
    }


def config_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())["quantization_config"]  # type: ignore[no-any-return]


def edited(folder: Path, target: Path, config: object, **tensors: torch.Tensor) -> Path:
    """A copy with another quantization_config, and more or other tensors."""
    shutil.copytree(folder, target)
    values = json.loads((target / "config.json").read_text()) | {"quantization_config": config}
    (target / "config.json").write_text(json.dumps(values))
    if tensors:
        stored = load_file(target / "model.safetensors")
        save_file(stored | tensors, target / "model.safetensors", {"format": "pt"})
    return target


def kinds_of(model: torch.nn.Module) -> dict[str, tuple[int, int]]:
    packed = (
        (path, module) for path, module in model.named_modules() if isinstance(module, PackedLinear)
    )
    return {path: (module.bits, module.group_size) for path, module in packed}


MALFORMED: list[tuple[tuple[str, ...], Any, str]] = [
    ((), "W8A16", "quantization_config is 'W8A16'; it must be a JSON object"),
    ((), [], "no quantization_config for its packed tensors"),
    ((), {}, "no quantization_config for its packed tensors"),
    (("format",), None, "quantization_config.format is None; expected 'pack-quantized' or"),
    (("format",), ["pack-quantized"], r"format is \['pack-quantized'\]"),
    (("ignore",), "lm_head", "quantization_config.ignore is 'lm_head'; it must be a list of names"),
    (("ignore",), [1], r"ignore is \[1\]; it must be a list of names"),
    (("config_groups",), None, "config_groups holds 0 groups"),
    (("config_groups",), [], "config_groups holds 0 groups"),
    (("config_groups",), ["group_0"], r"config_groups is \['group_0'\]; it must be a JSON object"),
    (("config_groups",), "W8A16", "config_groups is 'W8A16'; it must be a JSON object"),
    (("config_groups", "group_0"), None, "config_groups.group_0 is None; it must be a JSON object"),
    (
        ("config_groups", "group_0", "targets"),
        None,
        "group_0.targets is None; it must be a list of names",
    ),
    (
        ("config_groups", "group_0", "targets"),
        "Linear",
        "targets is 'Linear'; it must be a list of names",
    ),
    (
        ("config_groups", "group_0", "targets"),
        [],
        r"targets is \[\]; it must name at least one layer",
    ),
    (
        ("config_groups", "group_0", "targets"),
        [None],
        r"targets is \[None\]; it must be a list of names",
    ),
    (("config_groups", "group_0", "targets"), ["re:("], r"'re:\(' is not a regular expression"),
    (
        ("config_groups", "group_0", "targets"),
        ["Conv2d"],
        "is quantised, but no target in config_groups names it",
    ),
    (("config_groups", "group_0", "weights"), None, "group_0.weights.strategy is None"),
    (
        ("config_groups", "group_0", "weights"),
        "int8",
        "group_0.weights is 'int8'; it must be a JSON object",
    ),
    (
        ("config_groups", "group_0", "weights"),
        [8],
        r"group_0.weights is \[8\]; it must be a JSON object",
    ),
    (
        ("config_groups", "group_0", "weights", "num_bits"),
        None,
        "weights.num_bits is None; expected 4 or 8",
    ),
    (
        ("config_groups", "group_0", "weights", "num_bits"),
        "8",
        "weights.num_bits is '8'; expected 4 or 8",
    ),
    (
        ("config_groups", "group_0", "weights", "num_bits"),
        8.0,
        "weights.num_bits is 8.0; expected 4 or 8",
    ),
    (("config_groups", "group_0", "weights", "num_bits"), True, "weights.num_bits is True"),
    (("config_groups", "group_0", "weights", "num_bits"), [8], r"weights.num_bits is \[8\]"),
    (("config_groups", "group_0", "weights", "num_bits"), {}, "weights.num_bits is {}"),
    (
        ("config_groups", "group_0", "weights", "symmetric"),
        1,
        "weights.symmetric is 1; expected True",
    ),
    (("config_groups", "group_0", "weights", "strategy"), {"a": 1}, "weights.strategy is {'a': 1}"),
    (
        ("config_groups", "group_0", "weights", "group_size"),
        0,
        "weights.group_size is 0; expected None or -1",
    ),
    (("config_groups", "group_0", "weights", "group_size"), "128", "weights.group_size is '128'"),
    (
        ("config_groups", "group_0", "input_activations"),
        "int8",
        "input_activations is 'int8'; it must be a JSON",
    ),
    (
        ("config_groups", "group_0", "input_activations"),
        {"num_bits": "8"},
        "input_activations.num_bits is '8'",
    ),
    (("config_groups", "group_0", "format"), 3, "group_0.format is 3"),
]


def replaced(config: dict[str, Any], path: tuple[str, ...], value: object) -> Any:
    if not path:
        return value
    return {**config, path[0]: replaced(config.get(path[0], {}), path[1:], value)}


@pytest.mark.parametrize(
    ("path", "value", "message"), MALFORMED, ids=map(str, range(len(MALFORMED)))
)
def test_malformed_values_are_named(
    folders: dict[str, Path], tmp_path: Path, path: tuple[str, ...], value: object, message: str
) -> None:
    """Where the file is wrong, and how: not a KeyError from the depths."""
    config = replaced(config_of(folders["int8"]), path, value)
    with pytest.raises(CheckpointError, match=message):
        load_model(edited(folders["int8"], tmp_path / "edited", config))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_keys_that_are_not_there(folders: dict[str, Path], tmp_path: Path, name: str) -> None:
    """A group without `targets` was a KeyError; each key alone is missing once."""
    whole = config_of(folders[name])
    may_lack = {"quantization_status", "ignore", "symmetric", "type", "dynamic"}
    may_lack |= {"input_activations", "output_activations"}
    if name == "int8":
        may_lack |= {"num_bits", "group_size"}
    for number, (path, config) in enumerate(without_one_key(whole)):
        folder = edited(folders[name], tmp_path / str(number), config)
        if path[-1] in may_lack:
            assert kinds_of(load_model(folder)) == kinds_of(load_model(folders[name])), path
        else:
            # without num_bits it is 8, by the format, which the tensors are not
            others = {"group_0": "config_groups holds 0", "num_bits": "which is no matrix of"}
            wanted = others.get(path[-1], path[-1])
            with pytest.raises(CheckpointError, match=wanted):
                load_model(folder)


def without_one_key(
    config: dict[str, Any], path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(the key's path, the configuration without it), for every key of every object."""
    for key, value in config.items():
        yield (*path, key), {other: kept for other, kept in config.items() if other != key}
        if isinstance(value, dict):
            yield from (
                (where, {**config, key: rest})
                for where, rest in without_one_key(value, (*path, key))
            )


VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 4, 8, 8.0, 32, 1e300, "", "4", "int", "group", "Linear", "re:",
    "re:[", [], [0], [[]], ["Linear"], [None], {}, {"a": {}}, {"num_bits": 4}, "\u2028",
]  # fmt: skip


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """(container, key) of everything in a JSON value."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


@pytest.mark.parametrize("name", ["int8", "int4", "int4+vision"])
def test_anything_else_is_refused_or_understood(folders: dict[str, Path], name: str) -> None:
    """Every value at every place, and two thousand with several at once:
    CheckpointError or groups, nothing else."""
    whole = config_of(folders[name])
    number_of_places = len(list(places(whole)))
    tries = [[(place, value)] for place in range(number_of_places) for value in VALUES]
    chosen = random.Random(0)
    tries += [
        [
            (chosen.randrange(number_of_places), chosen.choice(VALUES))
            for _ in range(chosen.randint(2, 4))
        ]
        for _ in range(2000)
    ]
    num_read = 0
    for changes in tries:
        config = copy.deepcopy(whole)
        targets = list(places(config))
        for place, value in changes:
            container, key = targets[place]
            container[key] = copy.deepcopy(value)
        try:
            groups = read_groups(config, FOLDER)
        except CheckpointError as error:
            assert str(error).startswith("somewhere: quantization_config")  # noqa: PT017  (any other error is raised)
            continue
        num_read += 1
        assert groups
        for scheme in (group.scheme for group in groups if group.scheme is not None):
            assert type(scheme.bits) is int
            assert (scheme.group_size in (32, 64, 128)) == (scheme.bits == 4)
            assert scheme.bits == 4 or not scheme.has_zeros
    assert 0 < num_read < len(tries)


VISION_NAMES = [
    ["re:.*visual.*"],
    ["re:^(model\\.)?visual\\.blocks\\..*"],
    ["re:.*blocks.*"],
    ["re:.*attn[.]qkv$", "re:.*attn[.]proj$", "re:.*visual.*_proj$"],
    [f"visual.blocks.{n}.{name}" for n in range(8) for name in
     ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")],
]  # fmt: skip


@pytest.mark.parametrize("targets", VISION_NAMES, ids=lambda targets: targets[0])
@pytest.mark.parametrize(
    "text", [["Linear"], ["re:.*layers.*"], ["re:.*self_attn.*", "re:.*mlp.*"]], ids=str
)
@pytest.mark.parametrize("vision_first", [False, True])
def test_foreign_folders_with_two_widths(
    folders: dict[str, Path],
    tmp_path: Path,
    targets: list[str],
    text: list[str],
    vision_first: bool,
) -> None:
    """W4 beside a vision encoder in 8 bits was recognised by our own pattern's letters only."""
    config = config_of(folders["int4+vision"])
    groups = list(config["config_groups"].values())
    groups[0]["targets"], groups[1]["targets"] = text, targets
    config["config_groups"] = {
        str(n): group for n, group in enumerate(reversed(groups) if vision_first else groups)
    }
    model = load_model(edited(folders["int4+vision"], tmp_path / "foreign", config))
    ours = load_model(folders["int4+vision"])
    assert kinds_of(model) == kinds_of(ours)
    model.save_pretrained(tmp_path / "again")
    assert config_of(tmp_path / "again") == config_of(folders["int4+vision"])
    state = load_model(tmp_path / "again").state_dict()
    assert all(torch.equal(state[key], value) for key, value in ours.state_dict().items())


def mixed(folders: dict[str, Path], target: Path) -> Path:
    """Attention in 8 bits, the rest in 4, as programs make it that measure
    which layers bear less."""
    config = config_of(folders["int4"])
    eight = config_of(folders["int8"])["config_groups"]["group_0"]
    config["config_groups"] = {"a": eight | {"targets": [ATTENTION]}, **config["config_groups"]}
    rows = {
        key: value
        for key, value in load_file(folders["int8"] / "model.safetensors").items()
        if "self_attn" in key
    }
    return edited(folders["int4"], target, config, **rows)


def test_two_widths_in_the_text_layers(folders: dict[str, Path], tmp_path: Path) -> None:
    """Each layer is what its own tensors are, and saved again it is still that."""
    model = load_model(mixed(folders, tmp_path / "mixed"))
    kinds = kinds_of(model)
    assert {bits for path, (bits, _) in kinds.items() if "self_attn" in path} == {8}
    assert {bits for path, (bits, _) in kinds.items() if "mlp" in path} == {4}
    model.save_pretrained(tmp_path / "again")
    again = load_model(tmp_path / "again")
    assert kinds_of(again) == kinds
    assert torch.equal(again(torch.arange(9)[None]).logits, model(torch.arange(9)[None]).logits)


def test_a_packed_head(folders: dict[str, Path], tmp_path: Path) -> None:
    """Who ignores nothing has a quantised head as well;
    it answers, trains its inputs and is saved."""
    config = config_of(folders["int8"]) | {"ignore": []}
    stored = load_file(folders["int8"] / "model.safetensors")
    layer = next(key for key in stored if key.endswith("q_proj.weight_packed")).removesuffix(
        ".weight_packed"
    )
    packed, scale = stored[f"{layer}.weight_packed"], stored[f"{layer}.weight_scale"]
    repeat = -(-96 // len(packed))
    head = {"packed": packed.repeat(repeat, 1)[:96], "scale": scale.repeat(repeat, 1)[:96]}
    tensors = {f"lm_head.weight_{name}": tensor for name, tensor in head.items()}
    folder = edited(folders["int8"], tmp_path / "head", config, **tensors)
    tensors = load_file(folder / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    model = load_model(folder)
    assert isinstance(model.lm_head, Int8Linear)
    with torch.inference_mode():
        logits = model(torch.arange(9)[None]).logits
    model.save_pretrained(tmp_path / "again")
    assert "lm_head" not in config_of(tmp_path / "again")["ignore"]
    with torch.inference_mode():
        assert torch.equal(load_model(tmp_path / "again")(torch.arange(9)[None]).logits, logits)
