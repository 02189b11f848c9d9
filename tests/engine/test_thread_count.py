"""The number of threads of a writing step follows the machine: what is fastest is found and kept,
and looking for it costs little."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

import qwen25vl
from qwen25vl.engine.thread_count import MOST_STEPS, ThreadCount, ThreadCounts, choices
from qwen25vl.threads import at_most, num_threads

ALONE = {2: 1.0, 1: 1.4}
BESIDE = {2: 8.0, 1: 1.4}
SMALL = {2: 1.0, 1: 0.9}
EIGHT = {8: 1.0, 7: 1.1, 6: 1.2, 4: 1.6, 2: 3.0, 1: 6.0}
EIGHT_BESIDE = {8: 2.0, 7: 1.1, 6: 1.2, 4: 1.6, 2: 3.0, 1: 6.0}
FOUR_TAKEN = {8: 6.0, 7: 5.0, 6: 3.0, 4: 1.6, 2: 3.0, 1: 6.0}


def steps(count: ThreadCount, seconds: Mapping[int, float], num_steps: int) -> float:
    """The average time of a step on a machine where it takes so long with each number."""
    total = 0.0
    for _ in range(num_steps):
        total += seconds[count.choose()]
        count.learn(seconds[count.choose()])
    return total / num_steps


@pytest.mark.parametrize(
    ("most", "seconds", "best"),
    [(2, ALONE, 2), (2, BESIDE, 1), (2, SMALL, 1), (8, EIGHT, 8), (8, EIGHT_BESIDE, 7),
     (8, FOUR_TAKEN, 4), (1, {1: 1.0}, 1)],
)  # fmt: skip
def test_the_fastest_is_kept(most: int, seconds: dict[int, float], best: int) -> None:
    count = ThreadCount(most)
    steps(count, seconds, 300)
    assert count.choices[count.place] == best
    assert steps(count, seconds, 2000) <= 1.03 * seconds[best]  # what looking further costs


def test_load_is_noticed_at_once_and_its_end_in_time() -> None:
    count = ThreadCount(2)
    steps(count, ALONE, 3000)
    assert steps(count, BESIDE, 100) <= 1.3 * BESIDE[1]
    steps(count, BESIDE, 3000)
    steps(count, ALONE, MOST_STEPS + 8)
    assert count.choices[count.place] == 2


def test_a_disturbed_step_or_growing_contexts_change_nothing() -> None:
    count = ThreadCount(2)
    for step in range(4000):
        disturbed = 5.0 if step % 50 == 7 else 1.0
        grown = 1.0 + step / 4000
        count.learn(ALONE[count.choose()] * disturbed * grown)
    assert count.choices[count.place] == 2


def test_choices() -> None:
    assert choices(1) == [1]
    assert choices(2) == [2, 1]
    assert choices(3) == [3, 2, 1]
    assert choices(16) == [16, 15, 12, 8, 4, 1]


def test_each_size_of_a_step_has_a_number_of_its_own() -> None:
    counts = ThreadCounts()
    assert counts.of(1, 2) is counts.of(1, 2)
    assert counts.of(1, 2) is not counts.of(8, 2)
    assert counts.of(1, 2) is not counts.of(1, 4)  # torch.set_num_threads was called


def test_the_limit_is_of_this_thread_and_ends() -> None:
    everyone = torch.get_num_threads()
    with at_most(1):
        assert num_threads() == 1
        with at_most(everyone + 5):
            assert num_threads() == everyone
        assert num_threads() == 1
        assert torch.get_num_threads() == everyone
    assert num_threads() == everyone


def test_answers_do_not_depend_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number that changes at every step gives the answer of one that never does."""
    model = qwen25vl.load()
    asked = {"max_new_tokens": 40, "min_new_tokens": 40, "temperature": 0.0}
    expected = model.ask("Describe a cat.", **asked)
    used = []

    def choose(count: ThreadCount) -> int:
        used.append(len(used) % 2 + 1)
        return used[-1]

    monkeypatch.setattr(ThreadCount, "choose", choose)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        again = qwen25vl.load().ask("Describe a cat.", **asked)
    finally:
        torch.set_num_threads(before)
    assert again.text == expected.text
    assert {1, 2} <= set(used)
