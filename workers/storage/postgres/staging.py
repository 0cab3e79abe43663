"""When to look for jobs that have come due, and for those without a queue; see queries/maintain.sql."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

__all__ = ["MOST", "SHARE", "Staging"]

#: A look that found little waits this many times its own duration: while an old snapshot is held, it walks the entries of
#: all jobs that are gone. And so many seconds at most.
SHARE, MOST = 10, 5.0
#: Shorter pauses are none: there is a look each second.
LEAST = 1.0
#: Seconds that each job may take that was found.
EACH = 0.0002


class Staging:
    """Remembers when to look next."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = 0.0
        self._cost = 0.0

    def is_due(self, now: float) -> bool:
        """Whether to look."""
        return now >= self._next

    def looked(self, begun: float, rows: Sequence[Sequence[Any]]) -> None:
        """Take note of the look that was made if it was due at `begun`, and of what the statement answered."""
        if not self.is_due(begun):
            return
        ended = self._clock()
        told = {row[0]: row[-1] for row in rows}
        cost = 0.0 if "more" in told else ended - begun - EACH * told.get("moved", 0)
        # one alone that took long may have waited for a lock
        pause = min(MOST, SHARE * min(cost, self._cost))
        self._cost = cost
        if pause >= LEAST:
            self._next = ended + pause
