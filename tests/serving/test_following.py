"""What the routes of other APIs stand on, without a server."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing
from types import SimpleNamespace

from qwen25vl.serving import opening as opening_module
from qwen25vl.serving.answer_events import End, TextDelta, TokenInfo, Waiting
from qwen25vl.serving.following import follow
from qwen25vl.serving.generation import Generation

HELD = TextDelta(0, "", (TokenInfo(1, 0.0),))
WORD = TextDelta(0, "a", (TokenInfo(2, 0.0),))
END = End(0, "stop", None)


class Scripted(Generation):
    """Events with pauses before them."""

    def __init__(self, *script: tuple[float, object]) -> None:
        self.script, self.num_closed = script, 0

    async def events(self, seconds=None):
        for pause, event in self.script:
            await asyncio.sleep(pause)
            yield event

    def close(self) -> None:
        self.num_closed += 1


def service():
    return SimpleNamespace(settings=SimpleNamespace(keep_alive_seconds=0.02))


def collect(generation, shows_tokens=False, until=None, pause=0.0):
    of = service()

    async def run():
        async def open_later():
            await asyncio.sleep(pause)
            return generation

        found = []
        opening = asyncio.ensure_future(open_later())
        async with aclosing(follow(of, opening, shows_tokens)) as events:
            async for event in events:
                found.append(event)
                if until is not None and event is until:
                    break
        return found, opening

    found, opening = asyncio.run(run())
    return found, opening


def test_signs_of_life_come_only_where_nothing_else_was_sent():
    """A client gives up after a silence; one for each step of a prompt would be noise."""
    waiting = [(0.001, Waiting("prefill", i, 9)) for i in range(5)]
    found, _ = collect(Scripted(*waiting, (0, WORD), (0, END)), pause=0.05)
    assert found[0] is None  # while it was prepared
    generation = next(each for each in found if each is not None)
    assert found[found.index(generation) + 1 :] == [WORD, END]
    assert generation.num_closed  # which counts how it ended
    late, _ = collect(Scripted((0.03, Waiting("vision", 1, 9)), (0, WORD), (0.03, HELD)))
    assert late[1:] == [None, WORD, None]


def test_tokens_without_letters_are_for_those_who_ask():
    script = Scripted((0, HELD), (0, WORD), (0, END))
    assert collect(script)[0][1:] == [WORD, END]
    assert collect(script, shows_tokens=True)[0][1:] == [HELD, WORD, END]


def test_leaving_ends_the_request_wherever_it_is():
    """What goes on for nobody holds its memory, and what is prepared for nobody its turn."""
    generation = Scripted((0, WORD), (0, END))
    collect(generation, until=WORD)
    assert generation.num_closed

    async def run():
        opening = asyncio.ensure_future(asyncio.sleep(60))
        async with aclosing(follow(service(), opening)) as events:
            async for event in events:
                assert event is None
                break
        await asyncio.gather(opening, return_exceptions=True)
        return opening.cancelled()

    assert asyncio.run(run())


def test_a_sign_of_life_is_due_after_the_last_part_that_was_sent(monkeypatch):
    """One loop for all routes: what shows nothing does not put the sign off."""
    clock = [0.0]
    monkeypatch.setattr(opening_module.time, "monotonic", lambda: clock[0])
    left: list[bool] = []

    async def events() -> AsyncIterator[int]:
        try:
            for number in (1, 0, 0, 0, 2, 0):
                clock[0] += 4.0
                yield number
        finally:
            left.append(True)

    async def read(most: int) -> list[int | None]:
        found: list[int | None] = []
        async with aclosing(opening_module.paced(events(), range, 10.0)) as parts:
            async for part in parts:
                found.append(part)
                if len(found) == most:
                    break
        return found

    assert asyncio.run(read(99)) == [0, None, 0, 1]
    assert asyncio.run(read(1)) == [0]
    assert left == [True, True]
