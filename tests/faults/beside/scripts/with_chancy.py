"""chancy, with its executor for asyncio and its retry plugin."""

import asyncio

from chancy import Chancy, Job, Queue, Worker
from chancy.plugins.retry import RetryPlugin
from shared import CONCURRENCY, DSN, fail, ran

DISTRIBUTION = "chancy"


async def good(*, number, text=""):
    ran(number, text)


async def fails(*, how):
    fail(how)


again = fails


async def setup():
    async with Chancy(DSN) as chancy:
        await chancy.migrate()


async def enqueue(numbers):
    async with Chancy(DSN) as chancy:
        jobs = [Job.from_func(good).with_kwargs(number=number) for number in numbers]
        async for _ in chancy.push_many(jobs):
            pass


def worker():
    async def work():
        async with Chancy(DSN, plugins=[RetryPlugin()]) as chancy:
            queue = Queue(
                "default",
                concurrency=CONCURRENCY,
                executor=Chancy.Executor.Async,
                eager_polling=True,
            )
            await chancy.declare(queue, upsert=True)
            async with Worker(chancy) as work:
                await work.wait_for_shutdown()

    asyncio.run(work())
