"""The job types that the next version of the application brings. Only its install has this module.

`python -m next_jobs URL` enqueues one job; `workers run --app next_jobs:runner` runs them.
"""

from __future__ import annotations

import asyncio
import sys

import psycopg

from tests.helpers.fault_jobs import Stage, add_job_types
from workers import BackgroundJob, Runner


class Newer(BackgroundJob[Stage]):
    """A type that the old version does not know, before all others in a queue that it works."""

    priority = 5

    key: int = 0
    seconds: float = 0.0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            await asyncio.sleep(self.seconds)


class NewerElsewhere(BackgroundJob[Stage]):
    """The same, in a queue that the old version does not work."""

    queue = "newer"

    key: int = 0
    seconds: float = 0.0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            await asyncio.sleep(self.seconds)


def runner(database_url: str) -> Runner[Stage]:
    """For `workers run`."""
    stage = Stage("next", lambda event: None)
    return Runner(database_url, stage).register_job_type(Newer).register_job_type(NewerElsewhere)


if __name__ == "__main__":
    with psycopg.connect(sys.argv[1]) as opened:
        Newer.enqueue_batch(opened, [Newer()])
else:
    add_job_types(Newer, NewerElsewhere)
