"""Whatever a job raises is its own failure: counted, written in a form that any store takes, and nobody else's concern."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg

from tests.conftest import AsyncPool
from tests.helpers.outcomes import RAISED
from tests.helpers.running import World, drain
from workers import BackgroundJob
from workers.runtime.job_log import job_logger
from workers.telemetry import JobFinished, subscribe


class Raise(BackgroundJob[Any]):
    backoff = 1000
    what: str

    async def run(self, ctx: Any) -> None:
        raise RAISED[self.what][0]()


class Good(BackgroundJob[World]):
    number: int

    async def run(self, ctx: World) -> None:
        ctx.note(self.number)


async def test_the_stored_error_begins_with_the_code_of_the_job(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """The library's and anyio's frames between worker and job are left out; the cause is kept."""

    def inner() -> None:
        raise KeyError("missing")

    class Chained(BackgroundJob[Any]):
        in_thread: bool

        def run(self, ctx: Any) -> Any:
            return self.fail() if self.in_thread else self.later()

        async def later(self) -> None:
            await asyncio.sleep(0)
            self.fail()

        def fail(self) -> None:
            try:
                inner()
            except KeyError as error:
                raise ValueError("nothing there") from error

    Chained.enqueue_batch(conn, [Chained(in_thread=flag) for flag in (True, False)])
    await drain(pool, Chained)
    for (error,) in conn.execute("SELECT last_error FROM background_jobs").fetchall():
        assert "KeyError: 'missing'" in error
        assert error.endswith("ValueError: nothing there\n")
        assert "site-packages" not in error
        assert "executor.py" not in error


async def test_a_generator_is_no_job(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Nobody would run it; that is a failure, not a success. (With `yield` in `run` itself the class is refused.)"""

    class Lazy(BackgroundJob[Any]):
        def run(self, ctx: Any) -> Any:
            return self.work()

        async def work(self) -> Any:
            yield 1

    class LazyInThread(BackgroundJob[Any]):
        def run(self, ctx: Any) -> Any:
            return self.work()

        def work(self) -> Any:
            yield 1

    Lazy().enqueue(conn)
    LazyInThread().enqueue(conn)
    await drain(pool, Lazy, LazyInThread)
    rows = conn.execute("SELECT retries, last_error LIKE '%contains `yield`%' FROM background_jobs")
    assert rows.fetchall() == [(1, True), (1, True)]


async def test_a_log_filter_that_raises_costs_no_runner(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Nor does it cost the job its outcome."""

    def refuse(record: logging.LogRecord) -> bool:
        raise ZeroDivisionError

    Raise(what="value_error").enqueue(conn)
    job_logger.addFilter(refuse)
    try:
        await drain(pool, Raise, Good, context=World())
    finally:
        job_logger.removeFilter(refuse)
    assert conn.execute("SELECT retries FROM background_jobs").fetchall() == [(1,)]


async def test_a_subscriber_that_ends_programs_costs_no_runner(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    def leave(event: JobFinished) -> None:
        raise SystemExit

    Good(number=1).enqueue(conn)
    with subscribe(leave, JobFinished):
        await drain(pool, Good, context=World())
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)
