"""A user's program that uses the whole public face. It is type-checked, never run."""

from __future__ import annotations

from collections.abc import Awaitable
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
    Fixed,
    Linear,
    Priority,
    Snooze,
    UnsupportedConnectionError,
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
    assert_type(job.enqueue(conn), Awaitable[int | None])
    assert_type(await job.enqueue(conn), int | None)
    assert_type(await job.enqueue(conn.cursor()), int | None)
    assert_type(await job.enqueue(pool, priority=-5), int | None)
    assert_type(await job.enqueue(session, delay=1), int | None)
    assert_type(await job.enqueue(scoped), int | None)
    assert_type(await job.enqueue(connection), int | None)
    assert_type(Resize.enqueue_batch(conn, [job]), Awaitable[list[int | None]])
    assert_type(await Resize.enqueue_batch(session, [job]), list[int | None])


def refused(conn: psycopg.Connection) -> None:
    """What a type checker must not let pass."""
    SendEmail("user@example.com")  # type: ignore[call-arg]
    SendEmail(subject="to whom?")  # type: ignore[call-arg]
    SendEmail(to=1)  # type: ignore[arg-type]
    BackgroundJob()  # type: ignore[abstract]
    SendEmail.enqueue_batch(conn, [Ping()])  # type: ignore[list-item]
