"""How often jobs that have come due are looked for (rule 8). Pure."""

from __future__ import annotations

from typing import Any

import pytest

from workers.storage.postgres.staging import MOST, SHARE, Staging


class Looks:
    """A session that keeps house when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0
        self.staging = Staging(lambda: self.now)

    def look(self, took: float, moved: int = 0, *, more: bool = False) -> bool:
        """Whether the statement looked, which took so long and moved so many."""
        begun = self.now
        due = self.staging.is_due(begun)
        self.now += took
        rows: list[tuple[Any, ...]] = [("alive", None, None, None), ("moved", None, None, moved)]
        self.staging.looked(begun, rows + [("more", None, None, None)] * more)
        return due

    def pause(self, took: float, moved: int = 0, *, more: bool = False) -> float:
        """Seconds without a look after one that took so long, as did the one before."""
        for _ in range(2):
            self.now += MOST
            assert self.look(took, moved, more=more)
        ended = self.now
        while not self.staging.is_due(self.now):
            self.now += 0.01
        return self.now - ended


def test_there_is_a_look_each_time_on_a_healthy_server() -> None:
    assert Looks().pause(0.09) == 0


def test_slow_looks_take_a_tenth_of_the_time() -> None:
    """Rule 8: they walk the dead entries that an old snapshot keeps."""
    assert Looks().pause(0.2) == pytest.approx(SHARE * 0.2, abs=0.02)


def test_jobs_that_are_due_wait_five_seconds_at_most() -> None:
    """Rule 8: however slow it is."""
    assert MOST == 5.0
    assert Looks().pause(3.0) == pytest.approx(MOST, abs=0.02)


def test_work_that_was_done_is_no_reason_to_wait() -> None:
    assert Looks().pause(0.5, 3_000) == 0
    assert Looks().pause(4.0, 10_000, more=True) == 0


def test_one_slow_look_is_not_believed() -> None:
    """It may have waited for a lock; and what was no look says nothing."""
    looks = Looks()
    assert looks.look(0.001)
    assert looks.look(2.0)
    assert looks.look(2.0)
    assert not looks.look(0.001)
    looks.now += MOST
    assert looks.look(2.0), "it would be another one, after the quick one that was none"
    assert not looks.look(0.001)
