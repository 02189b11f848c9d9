"""`qwen25vl convert IN OUT.gguf`: what is written is read back as the same numbers, settings and
tokens, by formulas and a reader of its own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf_files import MEANT
from gguf_models import make_tensors, write_plain
from torch import nn

import qwen25vl.demo
from qwen25vl.cli import main
from qwen25vl.ecosystem import gguf_export
from qwen25vl.ecosystem.auto import load_model
from qwen25vl.ecosystem.gguf_export import export_gguf
from qwen25vl.ecosystem.processor import Qwen2_5_VLProcessor
from qwen25vl.errors import CheckpointError, TensorError, UsageError
from qwen25vl.hub import resolve_folder
from qwen25vl.loading.folder import quantize_folder
from qwen25vl.loading.formats.gguf_encoding import encode_tensor
from qwen25vl.loading.scheme import Scheme
from qwen25vl.single_file.gguf_header import read_header

pytestmark = pytest.mark.usefixtures("own_cache")

DEMO = Path(qwen25vl.demo.__file__).parent
IDS = torch.arange(1, 40)[None]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    meant = make_tensors(("F32",), "F32", tied=False, ollama=False, seed=3)[2]
    return write_plain(tmp_path / "source", meant, tied=False)


def outputs(model: Any) -> tuple[torch.Tensor, list[int]]:
    with torch.inference_mode():
        logits = model(IDS).logits.float()
    return logits, model.generate(IDS[:, :8], max_new_tokens=8, do_sample=False)[0].tolist()


def numbers_in(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a file in float32, by the tests' own formulas."""
    data = path.read_bytes()
    plain = {"F32": np.float32, "F16": np.float16}
    made = {}
    for name, tensor in read_header(path).tensors.items():
        raw = np.frombuffer(data[tensor.start : tensor.start + tensor.num_bytes], np.uint8)
        kind = tensor.type_name
        if kind == "BF16":
            numbers = torch.from_numpy(raw.copy()).view(torch.bfloat16).float()
        elif kind in plain:
            numbers = torch.from_numpy(raw.view(plain[kind]).astype(np.float32))
        else:
            size = {"Q4_0": 18, "Q8_0": 34, "Q6_K": 210}[kind]
            numbers = torch.from_numpy(MEANT[kind](raw.reshape(-1, size)).astype(np.float32))
        made[name] = numbers.reshape(tensor.shape)
    return made


def fill(model: nn.Module, text: dict[str, torch.Tensor], vision: dict[str, torch.Tensor]) -> None:
    """Give a plain model a file's numbers."""
    all_numbers = text | vision
    state = model.state_dict()
    for key in state:
        names = gguf_export.gguf_names_of(gguf_export.hub_name(key))
        parts = [all_numbers[name] for name in names]
        is_patch = "patch_embed" in key
        state[key] = torch.stack(parts, 2) if is_patch else torch.cat(parts)
    model.load_state_dict(state)


@pytest.mark.parametrize("kind", ["q4_0", "q8_0", "float16", "bfloat16", "float32"])
@pytest.mark.parametrize("which", ["untied", "built-in"])
def test_reads_back(kind: str, which: str, source: Path, tmp_path: Path) -> None:
    """Logits and greedy tokens are those of the numbers that the blocks stand for."""
    folder = DEMO if which == "built-in" else source
    target = export_gguf(folder, tmp_path / "out" / "m.gguf", kind)
    assert sorted(path.name for path in target.parent.iterdir()) == ["m.gguf", "mmproj-m.gguf"]
    plain = load_model(folder, dtype="float32")
    fill(plain, numbers_in(target), numbers_in(target.with_name("mmproj-m.gguf")))
    (logits, tokens), (wanted, wanted_tokens) = (
        outputs(load_model(target, dtype="float32")),
        outputs(plain),
    )
    assert (logits - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert tokens == wanted_tokens


def test_float32_loses_nothing(source: Path, tmp_path: Path) -> None:
    model = load_model(export_gguf(source, tmp_path / "m.gguf", "float32"), dtype="float32")
    for name, tensor in load_model(source, dtype="float32").state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name


def test_tokenizer_and_template_come_back(tmp_path: Path) -> None:
    target = export_gguf(DEMO, tmp_path / "m.gguf", "q8_0")
    ours, theirs = (
        Qwen2_5_VLProcessor.from_pretrained(folder) for folder in (DEMO, resolve_folder(target))
    )
    message = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "a Ü 12"}]}]
    assert ours.apply_chat_template(message) == theirs.apply_chat_template(message)
    texts = "<|im_start|>a Ü 12\n <tool_call><|fim_pad|>"
    one, other = (p.tokenizer(texts)["input_ids"] for p in (ours, theirs))
    assert one == other
    assert ours.tokenizer.decode(one) == theirs.tokenizer.decode(one)


@pytest.mark.parametrize(
    ("kind", "size", "per", "steps", "rest"),
    [
        ("Q4_0", 18, 32, 8, 2**-11),
        ("Q8_0", 34, 32, 254, 2**-11),
        ("Q6_K", 210, 16, 32, 2**-8 + 2**-11),
    ],
)
def test_blocks_are_near(kind: str, size: int, per: int, steps: int, rest: float) -> None:
    """Half a step of Q8_0; one step of the others, whose codes have one level fewer on one side.
    rest: of the largest number, what the rounding of scales adds. Zeros stay zeros."""
    numbers = torch.randn(64, 512, generator=torch.Generator().manual_seed(0))
    numbers[3] = 0
    raw = encode_tensor(numbers, kind, "x").numpy()
    made = torch.from_numpy(MEANT[kind](raw.reshape(-1, size)).astype(np.float32)).view(64, 512)
    largest = numbers.view(64, 2, 256).abs().amax(-1).repeat_interleave(256 // per, 1)
    bound = numbers.view(64, -1, per).abs().amax(-1) / steps + largest * rest
    assert ((made - numbers).view(64, -1, per).abs().amax(-1) <= bound).all()
    assert not made[3].any()


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_blocks_are_those_of_the_gguf_package(kind: str, tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    numbers = torch.randn(64, 512, generator=torch.Generator().manual_seed(1))
    wanted = gguf.quants.quantize(numbers.numpy(), gguf.GGMLQuantizationType[kind])
    assert encode_tensor(numbers, kind, "x").numpy().tobytes() == wanted.tobytes()
    target = export_gguf(DEMO, tmp_path / "m.gguf", kind.lower())
    for path in (target, tmp_path / "mmproj-m.gguf"):
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
        ours = numbers_in(path)
        assert found.keys() == ours.keys()
        for name, tensor in found.items():
            theirs = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert np.array_equal(theirs, ours[name].numpy()), name


def test_quantised_folder(source: Path, tmp_path: Path) -> None:
    quantize_folder(source, tmp_path / "int4", Scheme(4, 32))
    target = export_gguf(tmp_path / "int4", tmp_path / "m.gguf", "float32")
    made, wanted = (
        load_model(target, dtype="float32"),
        load_model(tmp_path / "int4", dtype="float32"),
    )
    assert (
        outputs(made)[0].sub(outputs(wanted)[0]).abs().max()
        <= 2e-5 * outputs(wanted)[0].abs().max()
    )


def test_nothing_is_left_of_an_error(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*event: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(source, tmp_path / "out" / "m.gguf", "q8_0", progress=stop)
    assert not list((tmp_path / "out").iterdir())
    monkeypatch.setattr("shutil.disk_usage", lambda place: type("", (), {"free": 10**6}))
    with pytest.raises(CheckpointError, match=r"0\.1 GB, its disk has 0\.0 GB free"):
        export_gguf(source, tmp_path / "out" / "m.gguf", "q8_0")
    assert not list((tmp_path / "out").iterdir())


def test_errors(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "m.gguf"
    assert main(["convert", str(source), str(target), "--to", "q8_0", "--mmproj", "float16"]) == 0
    types = {t.type_name for t in read_header(tmp_path / "mmproj-m.gguf").tensors.values()}
    assert types == {"F16", "F32"}
    with pytest.raises(UsageError, match="already exists; give another name, or --force"):
        export_gguf(source, target)
    export_gguf(source, target, force=True)
    for arguments, said in (
        ([str(target), "--to", "int4", "--force"], "a GGUF file is written with"),
        ([str(tmp_path / "x"), "--to", "q4_0"], "let OUT end with .gguf"),
    ):
        assert main(["convert", str(source), *arguments]) != 0
        assert said in capsys.readouterr().err
    with pytest.raises(UsageError, match="40 inputs, no multiple of 32"):
        gguf_export.plan_tensor("model.layers.0.mlp.down_proj.weight", (8, 40), "Q4_0", False)
    with pytest.raises(TensorError, match="x: numbers too large"):
        encode_tensor(torch.full((1, 32), 1e9), "F16", "x")
