"""Options of transformers' from_pretrained that have nothing to do here, and hints for others.

Code that is ported brings them along. Those that describe what this package does anyway are
accepted with the values that do (`HARMLESS`); a value that asks for something else, and any other
option, is an OptionError with a hint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import Parameter, signature
from typing import Any

from qwen25vl.arguments import name_hint, nearest_name
from qwen25vl.errors import OptionError

EITHER = (True, False)
HARMLESS: dict[str, tuple[Any, ...]] = {  # None is accepted for each of them
    "trust_remote_code": EITHER,  # no code of a checkpoint is ever run
    "low_cpu_mem_usage": EITHER,  # weights are always mapped
    "_fast_init": EITHER,
    "use_safetensors": (True,),
    "weights_only": EITHER,
    "offload_state_dict": EITHER,  # nothing is offloaded
    "offload_buffers": EITHER,
    "resume_download": EITHER,
    "force_download": (False,),
    "ignore_mismatched_sizes": (False,),
    "output_loading_info": (False,),
    "load_in_8bit": (False,),
    "load_in_4bit": (False,),
    "from_tf": (False,),
    "from_flax": (False,),
    "subfolder": ("",),
    "framework": ("pt",),
    "variant": (),
    "proxies": (),
    "max_memory": (),
    "state_dict": (),
    "key_mapping": (),
    "tp_plan": (),
    "push_to_hub": (False,),
}
PATHS = ("offload_folder",)  # any value: nothing is written there
HINTS = {
    "use_safetensors": "only safetensors files are read; convert the checkpoint first",
    "force_download": "`hf download --force-download NAME` downloads again",
    "ignore_mismatched_sizes": "every tensor must have the shape that config.json gives",
    "load_in_8bit": "give quantize='int8' (load) or quantization_config='int8' (from_pretrained)",
    "load_in_4bit": "give quantize='int4' (load) or quantization_config='int4' (from_pretrained)",
    "subfolder": "name the folder itself",
    "proxies": "set the environment variable HTTPS_PROXY",
    "max_memory": "the model stands on one device; quantise it if it is too large",
    "use_auth_token": "its name is token",
    "push_to_hub": "`hf upload NAME FOLDER` uploads what was saved",
    "feature_extractor": "it is part of the processor: give processor=",
}
OTHER_NAMES = (
    ("dtype", "torch_dtype"),
    ("device", "device_map"),
    ("quantize", "quantization_config"),
)
OF_MODELS = ("attn_implementation", "mrope", *(name for names in OTHER_NAMES for name in names))


def check_options(options: Mapping[str, Any], function: Callable[..., Any]) -> None:
    """Raise OptionError unless all of what a function got as `**options` is harmless."""
    for name, value in options.items():
        if name in PATHS or (name in HARMLESS and is_harmless(value, HARMLESS[name])):
            continue
        known = [
            p.name
            for p in signature(function).parameters.values()
            if p.kind not in (Parameter.POSITIONAL_ONLY, Parameter.VAR_KEYWORD)
        ]
        if name in HARMLESS:
            allowed = ", ".join(map(repr, (*HARMLESS[name], None)))
            raise OptionError(f"{name} is {value!r}; supported: {allowed}{hint(name, known)}")
        raise OptionError(f"there is no option {name!r}{hint(name, known)}")


def is_harmless(value: Any, allowed: tuple[Any, ...]) -> bool:
    return value is None or any(value == one and type(value) is type(one) for one in allowed)


def hint(name: str, known: list[str]) -> str:
    """What to write: another name of the same, what the table says, the nearest name, or all."""
    same = [other for names in OTHER_NAMES if name in names for other in names if other in known]
    if same:
        return f"; here it is {same[0]}"
    if name in OF_MODELS:
        return "; give it to the model"
    if name in HARMLESS or name in HINTS:
        return f"; {HINTS[name]}" if name in HINTS else ""
    near = nearest_name(name, [*known, *HARMLESS])
    return f"; {name_hint(name, [near] if near else known)}"
