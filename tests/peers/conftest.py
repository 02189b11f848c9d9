"""Assertions of other packages' tests, in our words: what holds, and what is refused on purpose."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """One line: how many of the peers' assertions hold."""
    reports = terminalreporter.stats.get("passed", [])
    passed = [r for r in reports if r.when == "call" and "peers/" in r.nodeid]
    refused = [r for r in passed if "refused" in r.keywords]
    if passed:
        held = len(passed) - len(refused)
        terminalreporter.write_line(
            f"peers' assertions: {held} hold, {len(refused)} refused on purpose"
        )
