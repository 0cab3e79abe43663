"""Job types that say what time it is where they run. Importing this module adds them to `fault_jobs.BY_NAME`."""

from __future__ import annotations

import time

from tests.helpers.fault_jobs import Stage, add_job_types
from workers import BackgroundJob, Snooze, current_job

__all__ = ["Clocked", "Snoozing", "Spawning", "Unready"]


class Clocked(BackgroundJob[Stage]):
    """Writes down what its process takes for the time."""

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run(str(time.time())):
            pass


class Spawning(BackgroundJob[Stage]):
    """Enqueues another one with a `delay`.

    Writes down its id, when it is due and in how many seconds, by the server's clock, and the time zone of its connection.
    """

    transactional = True

    delay: float

    async def run(self, stage: Stage) -> None:
        conn = current_job().connection
        child = await Clocked().enqueue(conn, delay=self.delay)
        cursor = await conn.execute(
            "SELECT extract(epoch FROM run_at), extract(epoch FROM run_at - now()), current_setting('TimeZone')"
            " FROM background_jobs WHERE id = %s",
            [child],
        )
        due, wait, zone = await cursor.fetchone()
        with stage.run(f"{child} {due} {wait} {zone}"):
            pass


class Unready(BackgroundJob[Stage]):
    """Fails the first time, and is to be tried again a second later."""

    backoff = 1.0

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            if current_job().attempt == 1:
                raise RuntimeError("the first time")


class Snoozing(BackgroundJob[Stage]):
    """Is not ready the first time, and wants to be run again a second later."""

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            job = current_job().id
            if job not in _snoozed:
                _snoozed.add(job)
                raise Snooze(1.0)


_snoozed: set[int] = set()

add_job_types(Clocked, Spawning, Unready, Snoozing)
