"""docs/serving.md against the program: its options, limits, routes and commands."""

import ast
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

from qwen25vl.cli.parser import build_parser

pytest.importorskip("starlette")

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
GROUPS = ("network", "limits", "pictures and videos")
UNITS = {"bytes": (2**20, "MiB"), "seconds": (1, "s")}
WORDS = {
    "max_num_seqs": "answers written at once",
    "max_queued_requests": "requests that wait",
    "max_queued_patches": "patches of pictures that wait",
    "max_body_bytes": "a request's body",
    "max_connections": "open connections",
    "max_answers": "answers of one request (`n`)",
    "default_max_tokens": "tokens of an answer whose request names no length",
    "max_stored_responses": "kept responses of `/v1/responses`",
    "max_stored_bytes": "memory of these",
    "stored_seconds": "until one that nobody asks for is dropped",
    "keep_alive_seconds": "between two lines of a stream",
    "shutdown_seconds": "for running requests at the end",
    "max_images": "pictures of a request",
    "max_videos": "videos of a request",
    "max_pages": "pages of a document",
    "max_decoded_pixels": "pixels of a picture as it is sent",
    "max_image_bytes": "a picture's file",
    "max_video_bytes": "a video's file",
    "max_pdf_bytes": "a document's file",
    "max_frames": "frames of a video that are shown to the model",
    "max_source_frames": "frames of a video that are looked through",
    "fetch_seconds": "for fetching a picture",
    "num_workers": "processes that decode",
    "worker_bytes": "memory of each",
    "worker_seconds": "for decoding a picture; ten times as much for a video",
}


def section(name: str) -> str:
    found = re.search(rf"<!-- {name}:.*?-->\n(.*?)<!-- end of {name} -->", PAGE, re.DOTALL)
    assert found, f"docs/serving.md has no {name}"
    return found[1].strip()


def serve_parser():
    actions = build_parser()._subparsers._group_actions
    return actions[0].choices["serve"]


def option_table() -> str:
    rows = ["| option | meaning |", "|---|---|"]
    for group in serve_parser()._action_groups:
        if group.title not in GROUPS:
            continue
        for action in group._group_actions:
            shown = action.option_strings[-1]
            if action.nargs != 0:
                choices = "\\|".join(action.choices or ())
                shown += f" {choices or action.metavar or action.dest.upper()}"
            text = (action.help or "") % {"default": action.default}
            rows.append(f"| `{shown}` | {text} |")
    return "\n".join(rows)


def limit_table() -> str:
    from qwen25vl.serving.settings import MediaLimits, ServerSettings

    rows = ["| limit | default |", "|---|---|"]
    for settings in (ServerSettings(), MediaLimits()):
        for field in fields(settings):
            value = getattr(settings, field.name)
            is_limit = isinstance(value, int | float) and not isinstance(value, bool)
            if is_limit and field.name != "port":
                divisor, unit = UNITS.get(field.name.rpartition("_")[2], (1, ""))
                rows.append(
                    f"| {WORDS[field.name]} | {value / divisor:,.15g} {unit}".rstrip() + " |"
                )
    return "\n".join(rows)


@pytest.mark.parametrize(("name", "table"), [("options", option_table), ("limits", limit_table)])
def test_the_tables_are_those_of_the_program(name, table):
    """An option that was renamed, or a limit that was changed, stays on a page for years."""
    assert section(name) == table(), f"write this under '{name}':\n\n{table()}"


def test_every_route_is_on_the_page():
    """And no route that is gone. The page's own are not for clients."""
    from qwen25vl.serving import app

    rows = PAGE.split("## Routes")[1].split("\n\n")[1]
    written = set(re.findall(r"`(GET|POST|DELETE) (/[^`]*)`", rows))
    real = {("GET", path) for path in app.STATUS}
    real |= {("POST", path) for path in (*app.LOOKUPS, *app.WORK)} | set(app.STORED)
    assert written == real


def commands() -> list[str]:
    """Every line of a shell block or unit that starts the server."""
    found = []
    for line in (PAGE + README).splitlines():
        _, start, rest = line.partition("qwen25vl serve")
        if start and not line.lstrip().startswith(("`", "#")) and "`" not in line:
            found.append(rest.partition(" #")[0])
    return found


def test_commands_are_understood():
    """A flag that is not there is found by the first user who copies the line."""
    assert len(commands()) >= 6
    for command in commands():
        build_parser().parse_args(["serve", *shlex.split(command)])


def test_blocks_of_python_can_be_read():
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) >= 7
    for block in blocks:
        ast.parse(block)


def test_the_image_is_built_from_files_that_exist():
    """And its server is no root's, and needs a key."""
    lines = (ROOT / "Dockerfile").read_text(encoding="utf-8").splitlines()
    sources = [
        name for line in lines if line.startswith("COPY") and "--from" not in line
        for name in line.split()[1:-1]
    ]  # fmt: skip
    kept = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert sources
    assert all((ROOT / name).exists() and f"!{name}" in kept for name in sources)
    assert sum(line.startswith("FROM") for line in lines) == 2
    assert "USER qwen25vl" in lines
    entry = next(line for line in lines if line.startswith("ENTRYPOINT"))
    argv = ast.literal_eval(entry.removeprefix("ENTRYPOINT "))
    assert not build_parser().parse_args(argv[1:]).no_api_key
