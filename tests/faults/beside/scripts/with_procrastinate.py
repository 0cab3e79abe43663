"""procrastinate; `again` with exponential waits."""

import asyncio

import procrastinate
from procrastinate.schema import SchemaManager
from shared import CONCURRENCY, DSN, fail, ran

DISTRIBUTION = "procrastinate"
app = procrastinate.App(connector=procrastinate.PsycopgConnector(conninfo=DSN))


@app.task(name="good")
async def good(number, text=""):
    ran(number, text)


@app.task(name="fail")
async def fails(how):
    fail(how)


@app.task(name="again", retry=procrastinate.RetryStrategy(exponential_wait=2))
async def again(how):
    fail(how)


async def setup():
    async with app.open_async():
        await SchemaManager(app.connector).apply_schema_async()


async def enqueue(numbers):
    async with app.open_async():
        await good.batch_defer_async(*({"number": number} for number in numbers))


def worker():
    async def work():
        async with app.open_async():
            await app.run_worker_async(concurrency=CONCURRENCY)

    asyncio.run(work())
