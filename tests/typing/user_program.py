"""A user's program that uses the whole public face. It is type-checked, never run."""

from __future__ import annotations

from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

import psycopg
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_scoped_session
from sqlalchemy.orm import Session, scoped_session

from workers import (
    BackgroundJob,
    Cancel,
    ClaimedJob,
    Discard,
    Exponential,
    FailedJobsError,
    Fixed,
    Linear,
    Priority,
    Runner,
    RunnerHandle,
    Snooze,
    UnsupportedConnectionError,
    current_job,
    migrate,
)
from workers.storage.memory import MemoryStorage
from workers.telemetry import (
    Event,
    JobDied,
    JobFenced,
    JobFinished,
    JobStarted,
    JobSuperseded,
    subscribe,
)


class Mailer:
    async def send(self, to: str, subject: str) -> None: ...


class Services:
    mailer: Mailer


class AppContext(Services):
    name: str


@dataclass
class Address:
    street: str
    city: str = "Pallet Town"


def keep(job: ClaimedJob) -> bool:
    return job.queue == "emails"


class SendEmail(BackgroundJob[AppContext]):
    job_name = "send_email"
    queue = "emails"
    priority = 10
    deduplicated = False
    max_attempts = 5
    max_crashes = 2
    backoff = Exponential(base=5.0, cap=timedelta(hours=1).total_seconds())
    timeout = timedelta(minutes=1)
    transactional = False

    to: str
    subject: str = "Welcome!"
    copies: list[str] = field(default_factory=list)
    home: Address | None = None

    @staticmethod
    def archive(job: ClaimedJob) -> bool:
        return job.priority > 0

    async def run(self, ctx: AppContext) -> None:
        if not self.to:
            raise Discard("nobody to send it to")
        await ctx.mailer.send(self.to, self.subject)


class Resize(BackgroundJob[AppContext]):
    """Runs in a thread; asks for less context than the application has; no timeout."""

    priority = Priority.HIGH
    archive = True
    timeout = None

    path: str

    @staticmethod
    def backoff(attempt: int) -> timedelta:
        return timedelta(minutes=attempt)

    def run(self, services: Services) -> None:
        if self.path == "later":
            raise Snooze(timedelta(minutes=5))
        raise Cancel("no longer wanted")


class Ping(BackgroundJob):
    """Without a context type: anything will do."""

    backoff = Fixed(2.0)
    archive = keep
    timeout = 2.5

    async def run(self, ctx: Any) -> None: ...


def doubling(attempt: int) -> float:
    return 2.0**attempt


class Tick(Ping):
    """Settings are inherited, and can be overridden."""

    backoff = Fixed(4.0)
    timeout = 5.0


class Tock(BackgroundJob):
    backoff = Linear(step=10)

    def run(self, ctx: object) -> None: ...


class Pong(BackgroundJob[None]):
    backoff = doubling
    archive = lambda job: job.retries > 0  # noqa: E731

    def run(self, ctx: None) -> int:
        return 1


def wants_app_context(job: type[BackgroundJob[AppContext]]) -> None: ...


def registers() -> None:
    """A job that asks for a base of the context fits; the context type is contravariant."""

    class ForServices(BackgroundJob[Services]):
        async def run(self, ctx: Services) -> None: ...

    wants_app_context(SendEmail)
    wants_app_context(ForServices)
    wants_app_context(Ping)


def enqueues(
    conn: psycopg.Connection,
    pool: ConnectionPool,
    session: Session,
    scoped: scoped_session[Session],
    connection: Connection,
) -> None:
    job = SendEmail(to="user@example.com", home=Address("Route 1"))
    assert_type(job.enqueue(conn), int | None)
    assert_type(job.enqueue(conn.cursor()), int | None)
    assert_type(job.enqueue(pool, priority=Priority.CRITICAL), int | None)
    assert_type(job.enqueue(session, delay=1.5), int | None)
    assert_type(job.enqueue(scoped, delay=timedelta(hours=1)), int | None)
    assert_type(job.enqueue(connection, queue="slow"), int | None)
    assert_type(SendEmail.enqueue_batch(conn, [job], run_at=datetime.now(UTC)), list[int | None])
    assert_type(SendEmail.enqueue_batch(session, (job for _ in range(3))), list[int | None])
    written: None = SendEmail.enqueue_batch(conn, [job], return_ids=False)
    assert written is None
    try:
        job.enqueue("postgresql://")  # type: ignore[call-overload]
    except UnsupportedConnectionError:
        pass


async def enqueues_async(
    conn: psycopg.AsyncConnection,
    pool: AsyncConnectionPool,
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
    connection: AsyncConnection,
) -> None:
    job = Resize(path="a.png")
    enqueued: Coroutine[Any, Any, int | None] = job.enqueue(conn)
    assert_type(await enqueued, int | None)
    job.enqueue(conn)  # type: ignore[unused-coroutine]  # a forgotten await
    assert_type(await job.enqueue(conn), int | None)
    assert_type(await job.enqueue(conn.cursor()), int | None)
    assert_type(await job.enqueue(pool, priority=-5), int | None)
    assert_type(await job.enqueue(session, delay=1), int | None)
    assert_type(await job.enqueue(scoped), int | None)
    assert_type(await job.enqueue(connection), int | None)
    Resize.enqueue_batch(conn, [job])  # type: ignore[unused-coroutine]  # a forgotten await
    assert_type(await Resize.enqueue_batch(session, [job]), list[int | None])
    await Resize.enqueue_batch(conn, (Resize(path="b.png") for _ in range(9)), return_ids=False)


class Transfer(BackgroundJob[AppContext]):
    transactional = True

    amount: int

    async def run(self, ctx: AppContext) -> None:
        job = current_job()
        assert_type(job.id, int)
        assert_type(job.attempt, int)
        assert_type(job.claim_token, str)
        assert_type(job.remaining, float | None)
        await job.connection.execute("UPDATE accounts SET balance = balance + %s", [self.amount])


async def runs(pool: AsyncConnectionPool, ctx: AppContext) -> None:
    runner = (
        Runner(pool, ctx, lease=timedelta(seconds=20), grace=10, listen=False, name="mail")
        .register_job_type(SendEmail)
        .register_job_type(Resize)
        .register_job_type(Ping)
        .register_job_type(Transfer)
        .configure_queue("emails", num_workers=2, poll_interval=5.0, jitter=0.1)
        .configure_queue("slow", poll_interval=timedelta(minutes=1))
        .configure_default_queue(num_workers=4)
        .shutdown_when_queue_empty()
    )
    assert_type(runner, Runner[AppContext])
    handle = runner.start()
    assert_type(handle, RunnerHandle)
    await handle.ready()
    handle.shutdown(grace=timedelta(seconds=5))
    assert_type(await handle.wait_for_shutdown(), list[int])
    async with runner.start() as started:
        assert_type(started.session, int)
    assert_type(await runner.run(), list[int])
    try:
        await runner.check_for_failed_jobs()
    except FailedJobsError as error:
        assert_type(error.job_ids, tuple[int, ...])


def runs_in_a_thread(dsn: str, ctx: AppContext) -> None:
    with Runner(dsn, ctx).register_job_type(SendEmail).start_in_thread() as hosted:
        hosted.shutdown()
        assert_type(hosted.wait_for_shutdown(timeout=10), list[int])


async def migrates(conn: psycopg.Connection, aconn: psycopg.AsyncConnection) -> None:
    assert_type(migrate("postgresql://"), list[str])
    assert_type(migrate(conn), list[str])
    assert_type(await migrate(aconn), list[str])


async def tests_without_a_database(ctx: AppContext) -> None:
    storage = MemoryStorage()
    assert_type(await Ping().enqueue(storage), int | None)
    finished: list[JobFinished] = []
    with subscribe(finished.append, JobFinished):
        await Runner(storage, ctx).register_job_type(Ping).shutdown_when_queue_empty().run()


def count(event: JobFinished | JobDied) -> None: ...


def count_all(event: JobStarted | JobFinished | JobDied) -> None: ...


def note(event: Event) -> None: ...


def listens() -> None:
    """To one type of event or several, with a function that takes those, or more."""
    names: list[str] = []
    with (
        subscribe(note),
        subscribe(note, JobFinished),
        subscribe(note, JobFinished, JobDied, JobStarted, JobFenced),
        subscribe(count, JobDied),
        subscribe(count, JobFinished, JobDied),
        subscribe(count_all, JobStarted, JobFinished),
        subscribe(count_all, JobStarted, JobFinished, JobDied),
        subscribe(print, JobStarted, JobFinished, JobDied, JobFenced),
        subscribe(lambda event: names.append(event.job.job_type), JobStarted),
        subscribe(lambda event: names.append(event.job.job_type), JobStarted, JobFinished),
        subscribe(lambda event: names.append(event.job.job_type), JobStarted, JobFinished, JobDied),
        subscribe(lambda event: event.session, JobFenced, JobSuperseded),
        subscribe(lambda event: event.session),
    ):
        pass


class OtherContext: ...


class Foreign(BackgroundJob[OtherContext]):
    async def run(self, ctx: OtherContext) -> None: ...


def refused(conn: psycopg.Connection, ctx: AppContext) -> None:
    """What a type checker must not let pass."""
    SendEmail("user@example.com")  # type: ignore[call-arg]
    SendEmail(subject="to whom?")  # type: ignore[call-arg]
    SendEmail(to=1)  # type: ignore[arg-type]
    BackgroundJob()  # type: ignore[abstract]
    SendEmail.enqueue_batch(conn, [Ping()])  # type: ignore[list-item]
    Runner("postgresql://", ctx).register_job_type(Foreign)  # type: ignore[arg-type]
    Runner("postgresql://", ctx, leese=5)  # type: ignore[call-arg]
    Runner(conn, ctx)  # type: ignore[arg-type]
    subscribe(count, JobStarted)  # type: ignore[arg-type]
    subscribe(count, JobFinished, JobStarted)  # type: ignore[arg-type]
    subscribe(lambda event: event.job, JobStarted, JobFenced)  # type: ignore[union-attr]
