"""Counts the runs of each job. Imports nothing of the library: the bare loop is measured without it."""

from __future__ import annotations

import time

__all__ = ["Counter", "Marks", "Naps"]


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


class Marks(Counter):
    """Also notes when the first job ran, and when each `step` more had run."""

    def __init__(self, n: int, step: int) -> None:
        super().__init__(n)
        self.times: list[float] = []
        self._step = step
        self._seen = 0

    def ran(self, number: int) -> None:
        self.runs[number] += 1
        if self._seen % self._step == 0:
            self.times.append(time.perf_counter())
        self._seen += 1
        if self._seen == len(self.runs):
            self.times.append(time.perf_counter())

    def rates(self) -> list[float]:
        """Jobs per second in each step."""
        return [
            self._step / (after - before)
            for before, after in zip(self.times, self.times[1:], strict=False)
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
