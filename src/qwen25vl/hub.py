"""From what people name to a local folder.

A folder is taken as it is, without a look at the network. A file (GGUF, safetensors) and a model in
Ollama's store ("qwen2.5vl:7b") are described as a folder (see single_file/). "owner/name", and
"owner/name:Q4_K_M" for a GGUF file of several, go through huggingface_hub: its cache, its
HF_HUB_OFFLINE and HF_TOKEN. Without a connection the cache answers; what it lacks is an error that
says so.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from qwen25vl.errors import CheckpointError, HubError
from qwen25vl.single_file import official
from qwen25vl.single_file.gguf_files import choose_files, describe_gguf
from qwen25vl.single_file.locate import describe_path
from qwen25vl.single_file.ollama import find_ollama, looks_like_ollama

DEFAULT_KIND = "Q4_K_M"  # of GGUF repositories, as other programs have it
Files = Literal["all", "processor", "adapter"]
Where = tuple[str | None, str | Path | None, bool, str | bool | None]
"""revision, cache_dir, local_files_only, token"""

PROCESSOR_FILES = (
    "config.json",
    "quantize_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)
WEIGHT_SUFFIXES = (".gguf", ".safetensors")
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
MODEL_FILES = (
    "generation_config.json",
    "model.safetensors.index.json",
    "model.safetensors",
    "model-*.safetensors",
    "gptq_model-*.safetensors",
)


def resolve_folder(
    name_or_folder: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    files: Files = "all",
) -> Path:
    """The local folder of a checkpoint, downloaded if it is a hub name that the cache lacks.

    files: "processor" leaves out the weights, "adapter" takes those of a LoRA adapter. Raises
    CheckpointError for a path that leads to no checkpoint, HubError for a hub name that cannot be
    had.
    """
    path = Path(name_or_folder).expanduser()
    where: Where = (revision, cache_dir, local_files_only, token)
    if path.exists():
        return describe_path(path, lambda: download(official.NAME, *where, "processor"))
    name = str(name_or_folder)
    if isinstance(name_or_folder, str) and (found := find_ollama(name)) is not None:
        return describe_gguf(*found)
    if isinstance(name_or_folder, str) and looks_like_ollama(name):
        raise CheckpointError(
            f"{name} is neither a path nor in Ollama's local store; run `ollama pull {name}`"
        )
    repository, _, kind = name.partition(":")
    if not kind and repository.lower().endswith("gguf"):
        kind = DEFAULT_KIND
    if isinstance(name_or_folder, Path) or not is_hub_name(repository) or is_in_folder(path):
        raise CheckpointError(describe_missing(path, name, files))
    if kind:
        return describe_gguf(*download_gguf(repository, kind, *where))
    return describe_path(download(name, *where, files), lambda: download(name, *where, files))


def is_hub_name(name: str) -> bool:
    """Whether a text that leads to no folder can be meant for the hub: owner/name, and no spelling
    of a path."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name) is not None


def is_in_folder(path: Path) -> bool:
    """Whether a path is that of a weight file in a folder which is there."""
    return path.suffix.lower() in WEIGHT_SUFFIXES and path.parent.is_dir()


def describe_missing(path: Path, name: str, files: Files) -> str:
    """What was expected where a path leads to nothing."""
    if path.suffix.lower() in WEIGHT_SUFFIXES:
        return f"the file {name} does not exist"
    what = "adapter folder" if files == "adapter" else "folder"
    return f"the {what} {name} does not exist (names on the hub have the form owner/name)"


def download(
    name: str, revision: str | None, cache_dir: str | Path | None, local_files_only: bool,
    token: str | bool | None, files: Files,
) -> Path:  # fmt: skip
    weights = {"all": (*MODEL_FILES, *ADAPTER_FILES), "adapter": ADAPTER_FILES, "processor": ()}
    wanted = [*PROCESSOR_FILES, "adapter_config.json", *weights[files]]
    return download_files(name, (revision, cache_dir, local_files_only, token), wanted)


def download_gguf(
    name: str, kind: str, revision: str | None, cache_dir: str | Path | None,
    local_files_only: bool, token: str | bool | None,
) -> tuple[Path, Path | None]:  # fmt: skip
    """The GGUF file of a repository that has `kind` in its name, and the vision encoder beside it.

    Raises HubError where there is none, or several.
    """
    from huggingface_hub import HfApi, constants

    where: Where = (revision, cache_dir, local_files_only, token)
    if local_files_only or constants.HF_HUB_OFFLINE:
        folder = download_files(name, (revision, cache_dir, True, token), ["*.gguf"])
        names = [str(path.relative_to(folder)) for path in sorted(folder.rglob("*.gguf"))]
        files, projector = choose_files(names, kind, name)
    else:
        try:
            names = HfApi(token=token).list_repo_files(name, revision=revision)
        except Exception as error:  # its transport's own errors come through too
            raise HubError(explain(error, name, revision, local_files_only)) from error
        files, projector = choose_files(names, kind, name)
        wanted = [*files, *([projector] if projector else []), *PROCESSOR_FILES]
        folder = download_files(name, where, wanted)
    return folder / files[0], folder / projector if projector else None


def download_files(name: str, where: Where, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    revision, cache_dir, local_files_only, token = where
    try:
        folder = snapshot_download(
            name,
            revision=revision,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
            token=token,
            allow_patterns=wanted,
        )
    except Exception as error:
        # its transport's own errors come through too, and change with its versions
        raise HubError(explain(error, name, revision, local_files_only)) from error
    return Path(folder)


def explain(error: Exception, name: str, revision: str | None, local_files_only: bool) -> str:
    """One line: what went wrong and what helps."""
    from huggingface_hub import constants, errors

    absent = f"{name} is not complete in the local cache and "
    if local_files_only or constants.HF_HUB_OFFLINE:
        switch = "local_files_only" if local_files_only else "HF_HUB_OFFLINE"
        absent += f"{switch} forbids to download it; run `hf download {name}` once with a "
        absent += "connection, or give a folder"
    else:
        absent += "the hub cannot be reached; check the connection, or give a folder"
    sign_in = "run `hf auth login` or give token="
    known = (  # the narrower class before the wider
        (errors.LocalEntryNotFoundError, absent),
        (
            errors.GatedRepoError,
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, then {sign_in}",
        ),
        (
            errors.RepositoryNotFoundError,
            f"the hub shows no model {name}; check the spelling; if private, {sign_in}",
        ),
        (
            errors.RevisionNotFoundError,
            f"{name} has no revision {revision!r}; give a branch, a tag or a commit",
        ),
        (
            errors.HFValidationError,
            f"{name!r} is not a valid model name on the hub; expected owner/name",
        ),
        (
            errors.LocalTokenNotFoundError,
            "token=True, but none is stored here; run `hf auth login` or set HF_TOKEN",
        ),
    )
    for kind, message in known:
        if isinstance(error, kind):
            return message
    first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
    return f"{name} cannot be downloaded from the hub: {first_line}"
