"""Options that ported code gives to from_pretrained, pipeline and load."""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import qwen25vl
from qwen25vl.demo import FOLDER
from qwen25vl.errors import HubError, OptionError

DOORS: dict[str, Callable[..., Any]] = {
    "auto": qwen25vl.AutoModelForImageTextToText.from_pretrained,
    "model": qwen25vl.Qwen2_5_VLForConditionalGeneration.from_pretrained,
    "processor": qwen25vl.AutoProcessor.from_pretrained,
    "config": qwen25vl.Qwen2_5_VLConfig.from_pretrained,
    "pipeline": lambda name, **options: qwen25vl.pipeline(model=name, **options),
    "load": qwen25vl.load,
}
everywhere = pytest.mark.parametrize("door", DOORS.values(), ids=DOORS)


@everywhere
def test_harmless_options_are_accepted(door: Callable[..., Any], tmp_path: Path) -> None:
    """Each was a raw TypeError from the depths of a signature."""
    for options in (
        {"trust_remote_code": True, "low_cpu_mem_usage": True, "use_safetensors": True},
        {"trust_remote_code": False, "_fast_init": False, "offload_folder": str(tmp_path)},
        {"weights_only": True, "force_download": False, "offload_state_dict": True},
        {"use_safetensors": None, "variant": None, "subfolder": "", "load_in_8bit": False},
        {"token": None, "cache_dir": tmp_path, "local_files_only": True, "revision": "main"},
    ):
        door(FOLDER, **options)
    assert [*tmp_path.iterdir()] == []


@everywhere
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"use_safetensors": False}, "only safetensors files are read"),
        ({"load_in_4bit": True}, "quantize='int4'"),
        ({"force_download": True}, "hf download"),
        ({"trust_remote_code": "yes"}, "trust_remote_code is 'yes'; supported: True, False, None"),
        ({"max_memory": {0: "5GB"}}, "one device"),
        ({"use_auth_token": "x"}, "its name is token"),
        ({"trust_remote": True}, "did you mean trust_remote_code"),
        ({"subfolder": "model"}, "name the folder"),
        ({"no_such_thing": 1}, "no option 'no_such_thing'"),
    ],
    ids=str,
)
def test_others_are_refused_with_a_hint(
    door: Callable[..., Any], options: dict[str, Any], words: str
) -> None:
    """What would change something must not be passed over;
    True for 1 or "yes" is no value either."""
    with pytest.raises(OptionError, match=words):
        door(FOLDER, **options)


@pytest.mark.parametrize(
    ("door", "options", "words"),
    [
        ("load", {"torch_dtype": "float32"}, "here it is dtype"),
        ("load", {"device_map": "cpu"}, "here it is device"),
        ("load", {"quantization_config": "int8"}, "here it is quantize"),
        ("model", {"device": "cpu"}, "here it is device_map"),
        ("processor", {"attn_implementation": "sdpa"}, "give it to the model"),
        ("config", {"attn_implementation": "sdpa"}, "give it to the model"),
    ],
)
def test_other_names_of_the_same(door: str, options: dict[str, Any], words: str) -> None:
    """The hint names what this very function calls it."""
    with pytest.raises(OptionError, match=words):
        DOORS[door](FOLDER, **options)


@everywhere
def test_hub_options_are_honoured(
    door: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """cache_dir, revision and token reach the hub;
    local_files_only keeps from the network, for configs too."""
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: pytest.fail("the network was tried")
    )
    with pytest.raises(HubError, match="not complete in the local cache"):
        door("nobody/nothing", cache_dir=tmp_path, local_files_only=True, trust_remote_code=True)
    seen: list[dict[str, Any]] = []

    def download(name: str, **options: Any) -> str:
        seen.append({"name": name, **options})
        return str(FOLDER)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    door("nobody/nothing", cache_dir=tmp_path, revision="v2", token="secret")
    for call in seen:
        wanted = {
            "name": "nobody/nothing",
            "cache_dir": tmp_path,
            "revision": "v2",
            "token": "secret",
        }
        assert wanted.items() <= call.items()
    assert seen
