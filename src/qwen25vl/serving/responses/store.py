"""Responses that are kept, to be read again and gone on from.

They are in memory only, and bounded in number, in bytes and in age. The least recently used one
goes first; using a response uses all that came before it in its conversation. One that is gone is
answered with 404, whoever asks; so is one that belongs to another API key.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from qwen25vl.serving.errors import ApiError
from qwen25vl.serving.responses.items import Item

OBJECT_BYTES = 64  # of each value, beside the letters of a text


@dataclass
class Stored:
    """A response as it was sent, and the items of its own input. owner: who may see it. used: when
    it was last."""

    reply: dict[str, Any]
    items: list[Item]
    owner: str
    num_bytes: int = 0
    used: float = 0.0

    @property
    def id(self) -> str:
        return str(self.reply["id"])

    @property
    def previous(self) -> str | None:
        previous: str | None = self.reply["previous_response_id"]
        return previous


@dataclass
class ResponseStore:
    """max_seconds: since a response was last used."""

    max_number: int
    max_bytes: int
    max_seconds: float
    clock: Callable[[], float] = time.monotonic
    kept: OrderedDict[str, Stored] = field(default_factory=OrderedDict)

    @property
    def num_bytes(self) -> int:
        return sum(each.num_bytes for each in self.kept.values())

    def put(self, new: Stored) -> None:
        new.num_bytes = weigh(new.reply) + weigh(new.items)
        new.used = self.clock()
        self.kept[new.id] = new
        self.shrink()

    def shrink(self) -> None:
        oldest = self.clock() - self.max_seconds
        while self.kept:
            first = next(iter(self.kept.values()))
            is_over = len(self.kept) > self.max_number or self.num_bytes > self.max_bytes
            if not is_over and first.used >= oldest:
                return
            self.kept.popitem(last=False)

    def find(self, name: str, owner: str) -> Stored | None:
        """A response, which counts as used then."""
        self.shrink()
        found = self.kept.get(name)
        if found is None or found.owner != owner:
            return None
        found.used = self.clock()
        self.kept.move_to_end(name)
        return found

    def get(self, name: str, owner: str) -> Stored:
        found = self.find(name, owner)
        if found is None:
            message = f"Response with id '{name[:128]}' not found."
            raise ApiError(404, message, param="response_id", code="not_found")
        return found

    def chain(self, name: str | None, owner: str) -> list[Stored]:
        """The responses of a conversation up to this one, the first one first. Raises a 404 where
        one of them is not there any more."""
        names: list[str] = []
        while name is not None:
            each = self.kept.get(name)
            if each is None or each.owner != owner or name in names:
                raise missing(name)
            names.append(name)
            name = each.previous
        found = [self.find(each, owner) for each in reversed(names)]
        whole = [each for each in found if each is not None]
        if len(whole) < len(names):  # too old
            raise missing(names[-1])
        return whole

    def delete(self, name: str, owner: str) -> None:
        self.get(name, owner)
        del self.kept[name]


def missing(name: str) -> ApiError:
    return ApiError(
        404,
        f"Previous response with id '{name[:128]}' not found: it was deleted, is too old, or was "
        "not stored. Send the whole conversation as input.",
        param="previous_response_id",
        code="previous_response_not_found",
    )


def weigh(value: Any) -> int:
    """About the bytes that a JSON value takes in memory."""
    total, waiting = 0, [value]
    while waiting:
        each = waiting.pop()
        total += OBJECT_BYTES
        if isinstance(each, str):
            total += len(each) if each.isascii() else 4 * len(each)
        elif isinstance(each, dict):
            waiting += [*each, *each.values()]
        elif isinstance(each, list):
            waiting += each
    return total
