"""saq on PostgreSQL."""

import asyncio

from saq import Worker
from saq.queue import Queue
from shared import CONCURRENCY, DSN, ran
from shared import fail as raise_error

DISTRIBUTION = "saq"


async def good(ctx, *, number, text=""):
    ran(number, text)


async def fail(ctx, *, how):
    raise_error(how)


async def again(ctx, *, how):
    raise_error(how)


async def setup():
    queue = Queue.from_url(DSN)
    await queue.connect()
    await queue.disconnect()


async def enqueue(numbers):
    queue = Queue.from_url(DSN)
    await queue.connect()
    for number in numbers:
        await queue.enqueue("good", number=number)
    await queue.disconnect()


def worker():
    async def work():
        queue = Queue.from_url(DSN)
        await queue.connect()
        await Worker(queue, functions=[good, fail, again], concurrency=CONCURRENCY).start()

    asyncio.run(work())
