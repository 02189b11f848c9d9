"""Stop strings that tokens cut anywhere, half characters, and endless repetition."""

import pytest

from qwen25vl.engine.stopping import AnswerText, RepetitionDetector, StopStrings


def read(stop_strings: list[str], parts: list[str]) -> tuple[list[str], bool]:
    """(text let through after each part, whether stopped); what is held at the end comes last."""
    stops = StopStrings(stop_strings)
    shown = []
    for part in parts:
        text, stopped = stops.push(part)
        shown.append(text)
        if stopped:
            return shown, True
    return [*shown, stops.finish()], False


@pytest.mark.parametrize(
    ("parts", "shown", "stopped"),
    [
        (["the e", "nd", " more"], ["the ", ""], True),
        (["the end of it"], ["the "], True),
        (["b", "e", "n", "t"], ["b", "", "", "ent", ""], False),
        (["e", "e", "n", "en", "d"], ["", "e", "", "en", ""], True),
        (["the e"], ["the ", "e"], False),
        (["", "end"], ["", ""], True),
    ],
)
def test_a_stop_string_across_tokens(parts: list[str], shown: list[str], stopped: bool) -> None:
    """Text is held back while it may become the stop string, shown when it does not, cut when it
    does."""
    assert read(["end"], parts) == (shown, stopped)


def test_the_first_of_several_cuts() -> None:
    assert read(["\n\n", "###"], ["a#", "#b\n#", "##", "c"]) == (["a", "##b\n", ""], True)
    assert read(["cd", "bcde"], ["ab", "cd"]) == (["a", "b"], True)


def test_a_stop_string_that_begins_twice() -> None:
    """A match that restarts inside itself: "aab" in "aaab"."""
    assert read(["aab"], ["a", "a", "a", "b"]) == (["", "", "a", ""], True)


def test_without_stop_strings_nothing_is_held() -> None:
    assert read([], ["a", "b"]) == (["a", "b", ""], False)


class Bytes:
    """A tokenizer whose tokens are bytes."""

    control_ids: dict[str, int] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.pending = b""

    def stream_decoder(self) -> "Bytes":
        return Bytes()

    def push(self, token_id: int) -> str:
        self.pending += bytes([token_id])
        try:
            text = self.pending.decode()
        except UnicodeDecodeError:
            return ""
        self.pending = b""
        return text

    def finish(self) -> str:
        return self.pending.decode(errors="replace")


def test_characters_are_whole() -> None:
    """A stop string of several bytes per character, and half a character at the end of an
    answer."""
    text = AnswerText(Bytes(), ["。"])
    shown = [text.push(byte) for byte in "猫。x".encode()]
    assert [stopped for _, stopped in shown] == [False] * 5 + [True, False]
    assert "".join(part for part, _ in shown[:6]) == "猫"

    text = AnswerText(Bytes(), ["ab"])
    assert [text.push(byte)[0] for byte in b"xa" + "猫".encode()[:2]] == ["x", "", "", ""]
    assert text.finish() == "a\ufffd"


@pytest.mark.parametrize(
    ("stop", "written", "shown", "stopped"),
    [
        ("}", "a<{}>", "a<{}>", False),
        ("}", "a<{}>b}c", "a<{}>b", True),
        (">b", "a<{}>bc", "a<{}>bc", False),  # begins within the call
        ("a<", "a<{}>", "a<{}>", False),  # ends within it: what was held back is shown
        ("ab", "a<b>ab", "a<b>", True),
        ("}", "a}<{}>", "a", True),
        ("}}", "<{}", "<{}", False),
    ],
)
def test_no_stop_string_cuts_a_call(stop: str, written: str, shown: str, stopped: bool) -> None:
    """Clients send "}" or a blank line as stop strings with their tools: the JSON was cut."""
    first = AnswerText(Bytes(), [stop], spared=(ord("<"), ord(">")))
    for text in (first, first.fresh()):
        told, is_met = "", False
        for byte in written.encode():
            part, is_met = text.push(byte)
            told += part
            if is_met:
                break
        assert (told + ("" if is_met else text.finish()), is_met) == (shown, stopped)


def steps_until_seen(tokens: list[int], limit: int = 100) -> int | None:
    detector = RepetitionDetector(limit)
    return next((i for i, token in enumerate(tokens) if detector.push(token)), None)


@pytest.mark.parametrize("period", [1, 2, 7, 63, 64])
def test_a_cycle_is_seen_after_the_limit(period: int) -> None:
    """The first round is new; the next `limit` tokens repeat it."""
    cycle = [1000 + i for i in range(period)]
    assert steps_until_seen([5, 6, 7] + cycle * 200) == 3 + period + 100 - 1


def test_longer_cycles_and_the_switch() -> None:
    assert steps_until_seen(list(range(65)) * 10) is None
    assert steps_until_seen([1] * 1000, limit=0) is None


def test_tables_and_lists_are_not_cycles() -> None:
    """A long table with a running number, and lines that repeat for a while, are legitimate."""
    table = [token for row in range(400) for token in (1, 2, 3, 4, 1000 + row, 5, 6)]
    assert steps_until_seen(table) is None
    assert steps_until_seen([1, 2, 3] * 30 + [4] + [1, 2, 3] * 30) is None
