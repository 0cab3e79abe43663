"""Settings that are assigned after the class statement, as in tests: all of them count from then on, and are checked."""

from __future__ import annotations

from typing import Any
from unittest import mock

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain, make_runner
from workers import BackgroundJob, ConfigurationError, Runner
from workers.job_type import describe

WAITING = "SELECT queue, priority FROM background_jobs ORDER BY id"
ENDED = "SELECT reason, crashes FROM dead_jobs"


class Fails(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.note("ran")
        raise ValueError("as always")


class Below(Fails):
    """Inherits what is assigned to its base."""


@pytest.fixture(params=[Fails, Below])
def job_class(request: pytest.FixtureRequest) -> type[Fails]:
    """One that has been used with the settings of its class statement."""
    used: type[Fails] = request.param
    describe(used)
    return used


async def test_attempts(pool: AsyncPool, conn: psycopg.Connection, job_class: type[Fails]) -> None:
    job_class().enqueue(conn)
    with mock.patch.object(Fails, "max_attempts", 1):
        await drain(pool, job_class, context=World())
        assert job_class.policy().max_attempts == 1
    assert conn.execute(ENDED).fetchall() == [("failed 1 of 1 attempts", 0)]
    assert job_class.policy().max_attempts == 25


async def test_crashes(pool: AsyncPool, conn: psycopg.Connection, job_class: type[Fails]) -> None:
    job_class().enqueue(conn)
    conn.execute("UPDATE background_jobs SET crashes = 1")
    world = World()
    with mock.patch.object(Fails, "max_crashes", 1):
        await drain(pool, job_class, context=world)
    assert conn.execute(ENDED).fetchall() == [("its process died under it 1 times", 1)]
    assert world.seen == []


async def test_backoff(pool: AsyncPool, conn: psycopg.Connection, job_class: type[Fails]) -> None:
    job_class().enqueue(conn)
    with mock.patch.object(Fails, "backoff", 7200):
        await drain(pool, job_class, context=World())
    query = "SELECT run_at > now() + interval '1 hour' FROM background_jobs"
    assert conn.execute(query).fetchall() == [(True,)]


async def test_archive(pool: AsyncPool, conn: psycopg.Connection, job_class: type[Fails]) -> None:
    async def run(self: Fails, ctx: World) -> None: ...

    job_class().enqueue(conn)
    with mock.patch.object(Fails, "archive", True), mock.patch.object(Fails, "run", run):
        await drain(pool, job_class, context=World())
    assert conn.execute("SELECT state FROM archived_jobs").fetchall() == [("completed",)]


async def test_the_queue(pool: AsyncPool, conn: psycopg.Connection, job_class: type[Fails]) -> None:
    """Of what is enqueued, and of what a runner works: both at once."""
    world = World()
    with mock.patch.object(Fails, "queue", "other"):
        job_class().enqueue(conn)
        job_class.enqueue_batch(conn, [job_class()])
        assert conn.execute(WAITING).fetchall() == [("other", 0)] * 2
        runner = Runner(pool, world).register_job_type(job_class).shutdown_when_queue_empty()
    await runner.start().wait_for_shutdown()
    assert world.seen == ["ran"] * 2


def test_deduplication(conn: psycopg.Connection, job_class: type[Fails]) -> None:
    with mock.patch.object(Fails, "deduplicated", True):
        assert job_class().enqueue(conn) is not None
        assert job_class().enqueue(conn) is None
    assert job_class().enqueue(conn) is not None


def test_what_deduplication_asks_of_payloads(conn: psycopg.Connection) -> None:
    """Equal ones are written alike, which those of other jobs need not be."""

    class Tagged(Fails):
        labels: set[str]

    labels = sorted(f"label {number:02}" for number in range(20))
    Tagged(labels=set(labels)).enqueue(conn)
    Tagged.deduplicated = True
    Tagged(labels=set(labels)).enqueue(conn)
    query = "SELECT data->'labels' FROM background_jobs WHERE deduplicated"
    assert conn.execute(query).fetchall() == [(labels,)]


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("priority", 99_999, "Changed.priority is out of range: it must be from -32768 to 32767"),
        ("priority", "HIGH", "Changed.priority is a str"),
        ("queue", "no such", "Changed.queue is 'no such'"),
        ("job_name", "", "Changed.job_name is ''"),
    ],
)
@pytest.mark.parametrize("used", [True, False])
def test_wrong_ones_leave_the_transaction_as_it_is(
    conn: psycopg.Connection, setting: str, value: Any, message: str, used: bool
) -> None:
    class Changed(Fails): ...

    if used:
        describe(Changed)
    setattr(Changed, setting, value)
    with conn.transaction():
        with pytest.raises(ConfigurationError, match=message):
            Changed().enqueue(conn)
        with pytest.raises(ConfigurationError, match=message):
            Changed.enqueue_batch(conn, [Changed()], return_ids=False)
        assert conn.execute(WAITING).fetchall() == []


@pytest.mark.parametrize(("setting", "value"), [("max_attempts", 0), ("timeout", -1)])
async def test_wrong_ones_are_not_registered(pool: AsyncPool, setting: str, value: Any) -> None:
    with (
        mock.patch.object(Fails, setting, value),
        pytest.raises(ConfigurationError, match=f"Below.{setting}"),
    ):
        make_runner(pool, Below)
