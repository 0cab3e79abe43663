"""How much one claim may bring. Pure.

Jobs are counted, but links and memory have room for bytes: a batch of 500 that is nothing with payloads of 100 bytes does
not come through in time with payloads of a megabyte. So a claim is bounded by the size of the payloads seen last; and one
that failed is not repeated as it was, but by half, until one comes through.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..job import ClaimedJob

__all__ = ["MOST_BYTES", "Appetite"]

#: Characters of payload that a claim should not exceed, if those to come are like those before.
MOST_BYTES = 16 * 1_048_576


class Appetite:
    """The bound of one queue's claims, at most `most` jobs."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._digestible = most
        self._size = 0.0

    def bound(self, wanted: int) -> int:
        """How many of `wanted` jobs to ask for: at least one."""
        return max(1, min(wanted, self._digestible, int(MOST_BYTES / max(self._size, 1.0))))

    def took(self, jobs: Sequence[ClaimedJob]) -> None:
        """A claim came through: with larger payloads the bound falls at once, with smaller ones it rises by and by."""
        self._digestible = min(self._most, self._digestible * 2)
        if jobs:
            size = sum([len(job.data) for job in jobs]) / len(jobs)
            self._size = max(size, (self._size + size) / 2)

    def choked(self, on: int) -> None:
        """A claim of at most `on` jobs did not come through."""
        self._digestible = max(1, on // 2)
