"""oban, embedded."""

import asyncio
import signal

from oban import Oban, job
from oban.schema import install
from psycopg_pool import AsyncConnectionPool
from shared import CONCURRENCY, DSN, fail, ran

DISTRIBUTION = "oban"


@job(queue="default")
async def good(number, text=""):
    ran(number, text)


@job(queue="default")
async def fails(how):
    fail(how)


again = fails


async def setup():
    async with AsyncConnectionPool(DSN) as pool:
        await install(pool)


async def enqueue(numbers):
    async with AsyncConnectionPool(DSN) as pool, Oban(pool=pool) as oban:
        await oban.enqueue_many(*(good.new(number) for number in numbers))


def worker():
    async def work():
        stopped = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
        async with (
            AsyncConnectionPool(DSN) as pool,
            Oban(pool=pool, queues={"default": CONCURRENCY}),
        ):
            await stopped.wait()

    asyncio.run(work())
