"""The jobs that are run."""

from __future__ import annotations

import asyncio

from workers import BackgroundJob

from .counter import Counter, Naps

__all__ = ["Nap", "Noop"]


class Noop(BackgroundJob[Counter]):
    """Does nothing but say that it ran."""

    job_name = "noop"

    number: int

    async def run(self, counter: Counter) -> None:
        counter.ran(self.number)


class Nap(BackgroundJob[Naps]):
    """Sleeps, as a job does that waits for somebody's API."""

    job_name = "nap"

    number: int

    async def run(self, naps: Naps) -> None:
        naps.begins()
        await asyncio.sleep(naps.seconds)
        naps.ran(self.number)
