"""Jobs that carry poison, or end in it. Importing this module makes them known to worker processes."""

from __future__ import annotations

import asyncio
from typing import Any

from tests.helpers.fault_jobs import Stage, add_job_types
from tests.helpers.outcomes import RETURNED, raised
from workers import BackgroundJob

__all__ = [
    "Failing",
    "Parcel",
    "Raising",
    "RaisingInThread",
    "RaisingLater",
    "Returning",
    "ReturningInThread",
    "Tireless",
]


class Parcel(BackgroundJob[Stage]):
    """Carries what may be poison."""

    number: int = 0
    ratio: float = 0.0
    text: str = ""
    anything: Any = None

    async def run(self, stage: Stage) -> None:
        with stage.run():
            pass


class Failing(BackgroundJob[Stage]):
    """Fails, always."""

    async def run(self, stage: Stage) -> None:
        with stage.run():
            raise ValueError("always")


class Tireless(Failing):
    """The same, whatever its counters say."""

    max_attempts = 2**31 - 1


class Raising(BackgroundJob[Stage]):
    """Raises what it is told to."""

    backoff = 1000
    what: str

    async def run(self, stage: Stage) -> None:
        with stage.run():
            raise raised(self.what)


class RaisingLater(Raising):
    """The same, when the event loop has done something else."""

    async def run(self, stage: Stage) -> None:
        with stage.run():
            await asyncio.sleep(0.001)
            raise raised(self.what)


class RaisingInThread(BackgroundJob[Stage]):
    """The same in a thread."""

    backoff = 1000
    what: str

    def run(self, stage: Stage) -> None:
        with stage.run():
            raise raised(self.what)


class Returning(BackgroundJob[Stage]):
    """Returns what it is told to."""

    what: str

    async def run(self, stage: Stage) -> object:
        with stage.run():
            return RETURNED[self.what]()


class ReturningInThread(BackgroundJob[Stage]):
    """The same in a thread."""

    what: str

    def run(self, stage: Stage) -> object:
        with stage.run():
            return RETURNED[self.what]()


add_job_types(
    Parcel,
    Failing,
    Tireless,
    Raising,
    RaisingLater,
    RaisingInThread,
    Returning,
    ReturningInThread,
)
