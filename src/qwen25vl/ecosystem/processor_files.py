"""The processor's part of a checkpoint folder:
how pictures and videos are prepared, and the chat template.

Official folders have preprocessor_config.json and chat_template.json, and say nothing of videos.
Newer saves may have processor_config.json with both preparations, video_preprocessor_config.json
and chat_template.jinja instead.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from qwen25vl.config_values import read_json, read_text
from qwen25vl.errors import CheckpointError, ConfigError
from qwen25vl.hub import resolve_folder
from qwen25vl.load_options import HARMLESS, is_harmless
from qwen25vl.processing.template_language import compile_template
from qwen25vl.single_file import official

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt",
                   "special_tokens_map.json",
                   "added_tokens.json")  # fmt: skip
PREPARATIONS = ("preprocessor_config.json", "processor_config.json")
HUB_OPTIONS = ("revision", "cache_dir", "local_files_only", "token")


def find_folder(
    name_or_folder: str | Path, options: Mapping[str, Any]
) -> tuple[Path, dict[str, Any]]:
    """The local folder of a name, and the options that do not say where it is.

    Raises HubError, or CheckpointError where there is no such folder.
    """
    where = {key: value for key, value in options.items() if key in HUB_OPTIONS}
    others = {
        key: value
        for key, value in options.items()
        if key not in HUB_OPTIONS and not (key in HARMLESS and is_harmless(value, HARMLESS[key]))
    }
    return resolve_folder(name_or_folder, files="processor", **where), others


def read_preparations(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the files say of pictures, and of videos, which may be nothing.

    Where no file says how pictures are prepared, the values of the released models are taken, with
    a warning. Raises CheckpointError where a file is damaged.
    """
    if not any((folder / name).exists() for name in PREPARATIONS):
        warn_official(folder, PREPARATIONS[0])
        return official.PREPROCESSOR, {}
    both = (
        read_json(folder / "processor_config.json")
        if (folder / "processor_config.json").exists()
        else {}
    )
    image = both.get("image_processor") or read_json(folder / "preprocessor_config.json")
    video = both.get("video_processor")
    if not video and (folder / "video_preprocessor_config.json").exists():
        video = read_json(folder / "video_preprocessor_config.json")
    for values in (image, video or {}):
        if not isinstance(values, dict):
            wanted = "the settings for pictures and videos must be JSON objects"
            raise ConfigError(f"{folder}: {wanted}, not {values!r:.60}")
    return image, video or {}


def read_template(folder: Path) -> str:
    """The chat template of pictures and videos; tokenizer_config.json's, which has tools instead,
    comes last, and after it, with a warning, that of the released models."""
    path = folder / "chat_template.jinja"
    if path.exists():
        return checked_template(read_text(path), path)
    for name in ("chat_template.json", "processor_config.json", "tokenizer_config.json"):
        if (folder / name).exists():
            template = choose_template(read_json(folder / name).get("chat_template"))
            if template is not None:
                return checked_template(template, folder / name)
    warn_official(folder, "chat template")
    return official.CHAT_TEMPLATE


def checked_template(template: str, path: Path) -> str:
    """The template. Raises CheckpointError for one that is damaged."""
    try:
        compile_template(template)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None
    return template


def choose_template(given: object) -> str | None:
    """A template as a text, or of several by name the default one."""
    if isinstance(given, str):
        return given
    named = [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
    named.sort(key=lambda each: each.get("name") != "default")
    found = [each["template"] for each in named if isinstance(each.get("template"), str)]
    return found[0] if found else None


def warn_official(folder: Path, what: str) -> None:
    warnings.warn(
        f"{folder} has no {what}; that of the released models is used (processor= or --processor "
        "names a folder with another)",
        stacklevel=6,
    )


def write_files(
    target: Path, image: Mapping[str, Any], video: Mapping[str, Any] | None, template: str
) -> list[str]:
    """The files in the official layout, without the tokenizer's; their paths."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("chat_template.jinja", "processor_config.json", "video_preprocessor_config.json"):
        (target / name).unlink(missing_ok=True)  # they would go before what is written now
    written = {"preprocessor_config.json": image, "chat_template.json": {"chat_template": template}}
    if video is not None:
        written["video_preprocessor_config.json"] = video
    for name, values in written.items():
        write_json(target / name, values)
    return [str(target / name) for name in written]


def copy_tokenizer(source: Path, target: Path) -> list[str]:
    """The tokenizer's files as they are; their paths."""
    target.mkdir(parents=True, exist_ok=True)
    names = [name for name in TOKENIZER_FILES if (source / name).exists()]
    if target.resolve() != source.resolve():
        for name in names:
            shutil.copy2(source / name, target / name)
    return [str(target / name) for name in names]


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def own_template(folder: Path) -> tuple[str, dict[str, Any]]:
    """A tokenizer's template, of texts alone, or else the one of pictures too; and the rest of
    tokenizer_config.json, which may be missing."""
    path = folder / "tokenizer_config.json"
    config = read_json(path) if path.exists() else {}
    template = choose_template(config.get("chat_template"))
    if template is not None:
        return checked_template(template, path), config
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the processor says it
        return read_template(folder), config
