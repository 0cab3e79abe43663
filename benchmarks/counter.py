"""Counts the runs of each job. Imports nothing of the library: the bare loop is measured without it."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Counter", "Naps", "Slices"]


class Counter:
    """How often each of `n` numbered jobs ran. Doubles as the jobs' context."""

    def __init__(self, n: int) -> None:
        self.runs = bytearray(n)

    def ran(self, number: int) -> None:
        """The job `number` runs."""
        self.runs[number] += 1

    @property
    def finished(self) -> bool:
        """Whether no job is left that did not run."""
        return b"\x00" not in self.runs

    @property
    def exactly_once(self) -> bool:
        """Whether every job ran once."""
        return self.runs == b"\x01" * len(self.runs)


class Slices(Counter):
    """Of jobs that come `size` at a time, two at least: also notes how long each slice took, from its first start to its
    last, and how long after `comes` the first one was."""

    def __init__(self, n: int, size: int) -> None:
        super().__init__(n)
        self.seconds: list[float] = []
        self.waits: list[float] = []
        self.done = asyncio.Event()
        self._size = size
        self._seen = 0
        self._came = self._began = 0.0

    def comes(self) -> None:
        """The next slice was just committed."""
        self._came = time.perf_counter()

    def ran(self, number: int) -> None:
        self.runs[number] += 1
        if self._seen == 0:
            self._began = time.perf_counter()
            self.waits.append(self._began - self._came)
        self._seen += 1
        if self._seen == self._size:
            self.seconds.append(time.perf_counter() - self._began)
            self._seen = 0
            self.done.set()

    def rates(self, parts: int) -> list[float]:
        """Jobs per second in each of so many equal parts."""
        slices = len(self.seconds) // parts
        return [
            (self._size - 1) * slices / sum(self.seconds[part * slices : (part + 1) * slices])
            for part in range(parts)
        ]


class Naps(Counter):
    """Jobs that sleep for `seconds`: also notes when the first one began and the last one ended."""

    def __init__(self, n: int, seconds: float) -> None:
        super().__init__(n)
        self.seconds = seconds
        self.first = self.last = 0.0

    def begins(self) -> None:
        """A job begins."""
        if not self.first:
            self.first = time.perf_counter()

    def ran(self, number: int) -> None:
        self.runs[number] += 1
        self.last = time.perf_counter()
