"""This library."""

import asyncio
from typing import Any

import psycopg
from shared import CONCURRENCY, DSN, fail, ran

from workers import BackgroundJob, Runner, migrate

DISTRIBUTION = "workers-pg"


class Good(BackgroundJob[None]):
    number: int
    text: str = ""

    async def run(self, ctx: None) -> None:
        ran(self.number)


class Fail(BackgroundJob[None]):
    how: str

    async def run(self, ctx: None) -> None:
        fail(self.how)


class Again(BackgroundJob[None]):
    max_attempts = 2**31 - 1

    how: str

    async def run(self, ctx: None) -> None:
        fail(self.how)


async def setup() -> None:
    await asyncio.to_thread(migrate, DSN)


async def enqueue(numbers: Any) -> None:
    async with await psycopg.AsyncConnection.connect(DSN) as conn:
        await Good.enqueue_batch(conn, [Good(number=number) for number in numbers])


def worker() -> None:
    runner = Runner(DSN, None)
    for job_type in (Good, Fail, Again):
        runner.register_job_type(job_type)
    asyncio.run(runner.configure_default_queue(num_workers=CONCURRENCY).run())
