"""pgqueuer, as `pgq run` runs it; `again` with its retry executor."""

import asyncio
import functools
import json
from contextlib import asynccontextmanager

import asyncpg
import pgqueuer
from pgqueuer import PgQueuer
from pgqueuer.core.executors import DatabaseRetryEntrypointExecutor
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries
from shared import DSN, fail, ran

DISTRIBUTION = "pgqueuer"


async def driver():
    return AsyncpgDriver(await asyncpg.connect(DSN))


async def setup():
    await Queries(await driver()).install()


async def enqueue(numbers):
    payloads = [json.dumps({"number": number}).encode() for number in numbers]
    await Queries(await driver()).enqueue(["good"] * len(payloads), payloads, [0] * len(payloads))


@asynccontextmanager
async def create():
    pgq = PgQueuer(await driver())

    @pgq.entrypoint("good")
    async def good(job):
        ran(**json.loads(job.payload))

    @pgq.entrypoint("fail")
    async def fails(job):
        fail(**json.loads(job.payload))

    retry = functools.partial(DatabaseRetryEntrypointExecutor, max_attempts=2**31 - 1)

    @pgq.entrypoint("again", executor_factory=lambda parameters: retry(parameters))
    async def again(job):
        fail(**json.loads(job.payload))

    yield pgq


def worker():
    asyncio.run(pgqueuer.run(create))
