"""What the watching thread says when it was stopped itself, as by code that holds the GIL. Rule 23."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from workers.runtime.loop_watch import LoopWatch


class Told:
    def __init__(self) -> None:
        self.everything: list[bool] = []
        self.stack = ""

    def __call__(
        self, seconds: float, stack: str, *, limit: float, everything: bool = False
    ) -> None:
        self.everything.append(everything)
        self.stack = stack


def never(_callback: Callable[[], object]) -> None:
    """A loop that stands still."""


def test_a_watch_that_overslept_says_so_and_not_that_the_loop_stood_still(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 100.0
    monkeypatch.setattr("workers.runtime.loop_watch.time.monotonic", lambda: now)
    told = Told()
    watch = LoopWatch(never, told, 60.0)
    watch.look()
    now += 10.0

    def woken() -> None:
        watch.overslept(2.9)
        assert told.everything == []
        watch.overslept(9.0)
        watch.look()

    thread = threading.Thread(target=woken)
    thread.start()
    thread.join()
    assert told.everything == [True]
    assert told.stack.startswith("MainThread:\n")
    assert "test_a_watch_that_overslept" in told.stack
    assert "in woken" not in told.stack
    now += 4.0
    watch.look()
    assert told.everything == [True, False]
