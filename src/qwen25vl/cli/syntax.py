"""What all commands of the command line share: how errors look, and how a command is found."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from importlib import import_module
from typing import NoReturn, TypeAlias

from qwen25vl.errors import UsageError

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """argparse, except that a usage error is one line, like every other error."""

    def error(self, message: str) -> NoReturn:
        words = re.search(r"^unrecognized arguments: [^-]", message)
        hint = "; a question of several words needs quotes" if words else ""
        raise UsageError(f"{message}{hint}; see `{self.prog} --help`")


def command(name: str) -> Callable[[argparse.Namespace], int]:
    """The function of a command, imported from its module when it runs:
    `--help` must not wait for torch."""

    def call(arguments: argparse.Namespace) -> int:
        code: int = getattr(import_module(f"qwen25vl.cli.{name}"), name)(arguments)
        return code

    return call


def add_hub_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("source of the model")
    group.add_argument("--revision", metavar="NAME", help="branch, tag or commit on the hub")
    group.add_argument(
        "--offline", action="store_true", help="use local files only, never the network"
    )
