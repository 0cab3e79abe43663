"""Job types whose outcomes are written in ways of their own, and some that work with the tables by the engine itself.

Importing this module adds them to `fault_jobs.BY_NAME`.
"""

from __future__ import annotations

import asyncio
import time

from tests.helpers.fault_jobs import Stage, add_job_types
from workers import BackgroundJob, Cancel, Discard, JobState, current_job
from workers.job import NewJob
from workers.storage import open_storage

__all__ = ["ENQUEUED", "Ending", "Enqueueing", "Pair", "Requeueing"]

#: Jobs that an `enqueueing` enqueues, in two halves that differ.
ENQUEUED = 4


class Ending(BackgroundJob[Stage]):
    """Ends as its key says: archived, dead, or once it has failed."""

    backoff = 0.0

    key: int = 0
    seconds: float = 0.0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            await asyncio.sleep(self.seconds)
            if self.key % 3 == 0:
                raise Cancel("this one is archived")
            if self.key % 3 == 1:
                raise Discard("this one is dead")
            if current_job().attempt == 1:
                raise RuntimeError("the first time")


class Pair(BackgroundJob[Stage]):
    """Deduplicated, and held; says which pair it is of."""

    deduplicated = True

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run(f"pair {self.key}"):
            await stage.gate.wait()


class Enqueueing(BackgroundJob[Stage]):
    """Enqueues `later` jobs on a storage of its own: all in one transaction, in two statements. What they have in common is
    their key."""

    url: str

    async def run(self, stage: Stage) -> None:
        data = f'{{"key": {time.monotonic_ns()}}}'
        jobs = [
            NewJob(job_type="later", queue="default", data=data, priority=number % 2)
            for number in sorted(range(ENQUEUED), key=lambda number: number % 2)
        ]
        async with open_storage(self.url) as storage:
            await storage.enqueue(jobs)


class Requeueing(BackgroundJob[Stage]):
    """Gives all dead jobs another life, one by one."""

    url: str

    async def run(self, stage: Stage) -> None:
        async with open_storage(self.url) as storage:
            for job in await storage.list_jobs(JobState.DEAD):
                await storage.requeue([job.id])


add_job_types(Ending, Pair, Enqueueing, Requeueing)
