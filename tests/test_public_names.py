"""Whatever a user can reach by a public name is used by some test, by that name."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import typing
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from PIL import Image

import qwen25vl

SOURCE, TESTS = Path(qwen25vl.__file__).parent, Path(__file__).parent


def is_own(value: Any) -> bool:
    return str(getattr(value, "__module__", "")).startswith("qwen25vl")


def all_names() -> dict[str, Any]:
    """What an annotation may name, those under TYPE_CHECKING included."""
    names: dict[str, Any] = {"torch": torch, "Image": Image}
    for path in SOURCE.rglob("*.py"):
        if path.stem != "__main__":
            parts = path.relative_to(SOURCE.parent).with_suffix("").parts
            module = importlib.import_module(".".join(p for p in parts if p != "__init__"))
            names |= {name: v for name, v in vars(module).items() if not name.startswith("_")}
    return names


NAMES = all_names()


def members_of(value: type) -> Iterator[str]:
    """Public methods and properties that this package defines, inherited ones too."""
    for base in filter(is_own, value.__mro__):
        for name, member in vars(base).items():
            is_method = inspect.isfunction(getattr(member, "__func__", member))
            if not name.startswith("_") and (is_method or isinstance(member, property)):
                yield name


def methods_of(value: type) -> Iterator[FunctionType]:
    """What hands something out: the public methods, and iteration. What a property holds is a part
    of its owner."""
    for base in filter(is_own, value.__mro__):
        for name, member in vars(base).items():
            inner = getattr(member, "__func__", member)
            if inspect.isfunction(inner) and (name == "__next__" or not name.startswith("_")):
                yield inner


def classes_in(hint: Any) -> Iterator[type]:
    """The package's classes in an annotation. A torch module is a part of a model: it is public if
    it has a public name."""
    if inspect.isclass(hint) and is_own(hint) and not issubclass(hint, torch.nn.Module):
        yield hint
    for part in (*typing.get_args(hint), *getattr(hint, "__orig_bases__", ())):
        yield from classes_in(part)


def returned_by(function: FunctionType) -> Iterator[type]:
    module = inspect.getmodule(function)
    local = {name: v for name, v in NAMES.items() if name not in vars(module)}
    yield from classes_in(typing.get_type_hints(function, localns=local).get("return"))


def reachable() -> list[Any]:
    """The public names, and the classes that their functions and methods return."""
    found: list[Any] = []
    waiting = [getattr(qwen25vl, name) for name in qwen25vl.__all__]
    while waiting:
        value = waiting.pop()
        if value in found:
            continue
        found.append(value)
        for function in methods_of(value) if inspect.isclass(value) else [value]:
            waiting += returned_by(function)
    return found


def fields_of(value: type) -> list[str]:
    fields = dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
    return [field.name for field in fields if not field.name.startswith("_")]


def used_names() -> tuple[set[str], set[str]]:
    """Names read as attributes in the tests, and those used in any way: as attributes, as keywords
    of a call, as names, as keys of a dictionary that becomes keywords or a config."""
    read: set[str] = set()
    others: set[str] = set()
    for path in TESTS.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Attribute(attr=name):
                    read.add(name)
                case ast.keyword(arg=str(name)) | ast.Name(id=name):
                    others.add(name)
                case ast.ImportFrom(names=names):
                    others |= {alias.name for alias in names}
                case ast.Dict(keys=keys):
                    others |= {key.value for key in keys if isinstance(key, ast.Constant)}
    return read, read | others


READ, USED = used_names()


def test_the_walk_reaches_what_an_answer_is_made_of() -> None:
    """A walk that ends early would find nothing missing."""
    names = {value.__name__ for value in reachable()}
    assert names >= {"Answer", "AnswerStream", "Box", "Point", "Conversation", "GenerateOutput"}
    assert names >= {"CausalOutput", "ImageTextToTextPipeline", "KVCache", "Chunk"}
    assert "cat" in READ
    assert "no_such_method" not in READ


def test_every_public_name_is_used() -> None:
    """A name that leads to the wrong thing."""
    assert set(qwen25vl.__all__) <= USED


def test_every_public_method_and_property_is_called() -> None:
    """`post_process_image_text_to_text` and `gradient_checkpointing_disable` could have been empty:
    no test called them."""
    missing = {
        f"{value.__name__}.{name}"
        for value in reachable()
        if inspect.isclass(value)
        for name in members_of(value)
        if name not in READ
    }
    assert not missing, f"no test calls {sorted(missing)}"


def test_every_public_field_is_used() -> None:
    """A field that nobody reads can hold anything."""
    missing = {
        f"{value.__name__}.{name}"
        for value in reachable()
        if inspect.isclass(value)
        for name in fields_of(value)
        if name not in USED
    }
    assert not missing, f"no test uses {sorted(missing)}"
