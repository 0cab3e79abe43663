"""Whatever a job raises is its own failure: counted, written in a form that any store takes, and nobody else's concern."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain, eventually, running
from workers import BackgroundJob, Cancel, Discard, InvalidJobError, JobState, Snooze
from workers.runtime.failure import MAX_ERROR
from workers.runtime.job_log import job_logger
from workers.storage import open_storage
from workers.telemetry import JobFinished, subscribe


class Odd(BaseException):
    """Neither an Exception nor one of the known others."""


class Mute(Exception):  # noqa: N818
    """Can't say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Leaver(Exception):  # noqa: N818
    """Would end the process when it is asked for its text."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Endless(Exception):  # noqa: N818
    """Its cause is itself."""

    def __init__(self) -> None:
        super().__init__("round and round")
        self.__cause__ = self


class Classless(Exception):  # noqa: N818
    """Says nothing of what it is, not even to isinstance."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("no class for you")


class Closed(Exception):  # noqa: N818
    """Can be asked for nothing at all."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no attributes")


class NoReason(Cancel):
    """Raises when it is asked why."""

    @property
    def reason(self) -> str:
        raise SystemExit("no reason")

    @reason.setter
    def reason(self, value: str) -> None: ...


class NoSeconds(Snooze):
    """Raises when it is asked for how long."""

    @property
    def seconds(self) -> float:
        raise KeyboardInterrupt

    @seconds.setter
    def seconds(self, value: float) -> None: ...


def deep() -> BaseException:
    try:
        return deep()
    except RecursionError as error:
        return error


RAISED: dict[str, tuple[Callable[[], BaseException], str]] = {
    "value_error": (lambda: ValueError("plain"), "ValueError: plain"),
    "system_exit": (lambda: SystemExit(2), "SystemExit: 2"),
    "keyboard_interrupt": (KeyboardInterrupt, "KeyboardInterrupt"),
    "base": (lambda: Odd("odd"), "Odd: odd"),
    "generator_exit": (GeneratorExit, "GeneratorExit"),
    "stop_iteration": (lambda: StopIteration(1), "StopIteration"),
    "stop_async": (lambda: StopAsyncIteration(1), "StopAsyncIteration"),
    "cancelled": (asyncio.CancelledError, "cancelled the task it ran in"),
    "mute": (Mute, "Mute"),
    "leaver": (Leaver, "Leaver"),
    "endless": (Endless, "round and round"),
    "group": (lambda: ExceptionGroup("two", [ValueError("a"), TypeError("b")]), "TypeError: b"),
    "nul": (lambda: ValueError("a\0b"), "a\\x00b"),
    "surrogate": (lambda: ValueError("a\ud800b"), "a\\ud800b"),
    "huge": (lambda: ValueError("x" * 12_000_000 + "end"), "xend"),
    "many_lines": (lambda: ValueError("x\n" * 200_000), "x\n"),
    "recursion": (deep, "RecursionError"),
    "unprintable_args": (lambda: ValueError(Mute()), "ValueError"),
    "classless": (Classless, "Classless"),
    "closed": (Closed, "Closed"),
    "no_seconds": (lambda: NoSeconds(1), "NoSeconds"),
    "invalid_job": (lambda: InvalidJobError("a job it wanted to enqueue"), "a job it wanted"),
}
ERRORS = "SELECT data->>'what', retries, last_error FROM background_jobs"


class Raise(BackgroundJob[Any]):
    backoff = 1000
    what: str

    async def run(self, ctx: Any) -> None:
        raise RAISED[self.what][0]()


class RaiseLater(Raise):
    job_name = "raise_later"

    async def run(self, ctx: Any) -> None:
        await asyncio.sleep(0.001)
        raise RAISED[self.what][0]()


class RaiseInThread(BackgroundJob[Any]):
    backoff = 1000
    what: str

    def run(self, ctx: Any) -> None:
        raise RAISED[self.what][0]()


class Good(BackgroundJob[World]):
    number: int

    async def run(self, ctx: World) -> None:
        ctx.note(self.number)


@pytest.fixture
def quiet_log(caplog: pytest.LogCaptureFixture) -> None:
    """Texts of megabytes need not be formatted for a log that nobody reads."""
    caplog.set_level(logging.CRITICAL, "workers.jobs")


@pytest.mark.usefixtures("quiet_log")
@pytest.mark.parametrize("kind", [Raise, RaiseLater, RaiseInThread])
async def test_an_exception_of_any_kind_is_a_counted_retry(
    pool: AsyncPool, conn: psycopg.Connection, kind: type[Raise]
) -> None:
    """Guarantee 5, rule 15: also what ends programs, and texts that PostgreSQL refuses. All workers survive."""
    kind.enqueue_batch(conn, [kind(what=what) for what in RAISED])
    Good.enqueue_batch(conn, [Good(number=number) for number in range(50)])
    world = World()
    await drain(pool, kind, Good, context=world, workers=2)
    assert sorted(world.seen) == list(range(50))
    found = {what: (retries, error) for what, retries, error in conn.execute(ERRORS)}
    assert found.keys() == RAISED.keys()
    for what, (retries, error) in found.items():
        assert retries == 1, what
        assert RAISED[what][1] in error, what
        assert len(error) <= MAX_ERROR + 100, what


@pytest.mark.usefixtures("quiet_log")
async def test_an_exception_with_a_bad_text_delays_no_other_outcome(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Fault 7: the completions of the same batch all land."""
    for number in range(100):
        Good(number=number).enqueue(conn)
        if number % 10 == 0:
            Raise(what=["nul", "surrogate", "huge", "mute"][number % 4]).enqueue(conn)
    async with running(pool, Raise, Good, context=World()):
        await eventually(
            conn,
            "SELECT job_type, count(*), min(retries) FROM background_jobs GROUP BY 1",
            [("raise", 10, 1)],
            seconds=5,
        )


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


async def test_a_job_that_steers_with_texts_that_misbehave(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """It is still cancelled, or discarded; why is all that can't be said."""

    class Steers(BackgroundJob[World]):
        how: str

        async def run(self, ctx: World) -> None:
            raise NoReason() if self.how == "cancel" else Discard(Leaver())  # type: ignore[arg-type]

    steers = Steers.enqueue_batch(conn, [Steers(how=how) for how in ("cancel", "discard")])
    Good(number=1).enqueue(conn)
    world = World()
    await drain(pool, Steers, Good, context=world, workers=1)
    assert world.seen == [1]
    async with open_storage(pool) as storage:
        ended = [await storage.find(job_id or 0) for job_id in steers]
    assert [record and record.state for record in ended] == [JobState.CANCELLED, JobState.DEAD]
    assert all(record and "text can't be had" in (record.reason or "") for record in ended)


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
