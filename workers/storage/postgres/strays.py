"""Looks, now and then, for jobs that wait where nobody may be looking; see queries/stray.sql."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..base import MaintenanceRequest
from .statements import statement

__all__ = ["Strays"]

_STRAY = statement("stray")

#: Seconds between looks: few at first, when a mistake is fresh, doubled each time. And a hundredth of the time at most:
#: while an old snapshot is held, dead entries are walked.
FIRST, MOST, SHARE = 10.0, 60.0, 100


class Strays:
    """Remembers when to look next."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = 0.0
        self._every = FIRST

    def look(
        self, fetch: Callable[..., Sequence[tuple[Any, ...]]], request: MaintenanceRequest
    ) -> Sequence[tuple[str, str, bool]]:
        """(job type, queue, whether this runner knows the type); nothing when it is not yet time."""
        begun = self._clock()
        if begun < self._next:
            return ()
        try:
            found = fetch(_STRAY, queues=list(request.queues), job_types=list(request.declared))
        finally:  # one that was given up is not tried again at once
            ended = self._clock()
            self._next = ended + max(self._every, SHARE * (ended - begun))
            self._every = min(MOST, 2 * self._every)
        return [(job_type, queue, known) for job_type, queue, known in found]
