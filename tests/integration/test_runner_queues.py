"""Which rows a runner works: the row's queue decides, a bare INSERT gets the declared one, other types are left alone.

Rule 6, guarantee 7; and rows that wait for a time.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import World, eventually, make_runner, running
from workers import BackgroundJob, ConfigurationError, RegistrationError, Runner, RunnerError
from workers.storage.postgres import strays

COUNT = "SELECT count(*) FROM background_jobs"
BARE = b"INSERT INTO background_jobs (job_type, data, priority) VALUES (%s, '{}', 0)"
#: What waits has been waiting for longer than a runner that takes it would need.
LONG_AGO = b"UPDATE background_jobs SET created_at = created_at - interval '11 seconds'"


def look_all_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """For jobs that wait where nobody looks, in every round of housekeeping."""
    monkeypatch.setattr(strays, "FIRST", 0.0)
    monkeypatch.setattr(strays, "SHARE", 0)


class Mail(BackgroundJob[World]):
    queue = "emails"

    async def run(self, ctx: World) -> None:
        ctx.note("mail")
        ctx.signal("mail ran")


class Report(BackgroundJob[World]):
    queue = "reports"

    async def run(self, ctx: World) -> None:
        ctx.note("report")


class Blocking(BackgroundJob[World]):
    queue = "bulk"

    async def run(self, ctx: World) -> None:
        ctx.signal("busy")
        await ctx.wait("leave")


class BulkMail(Mail):
    job_name = "mail"
    queue = "bulk"


class Unknown(BackgroundJob[Any]):
    queue = "emails"

    async def run(self, ctx: Any) -> None: ...


async def test_a_bare_insert_runs_in_its_declared_queue(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Rule 6: within about a second, although the runner polls once a minute: it is woken."""
    world = World()
    async with running(pool, Mail, Report, context=world, poll=60, listen=False):
        began = time.monotonic()
        conn.execute(BARE, ["mail"])
        await world.wait("mail ran")
        assert time.monotonic() - began < 3
        await eventually(conn, COUNT, [(0,)])


async def test_a_bare_insert_of_an_unknown_type_is_left_alone(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """It keeps waiting, without a queue, for a runner that knows it."""
    conn.execute(BARE, ["unknown"])
    world = World()
    async with running(pool, Mail, context=world, poll=60):
        conn.execute(BARE, ["mail"])
        await eventually(conn, "SELECT job_type, queue FROM background_jobs", [("unknown", None)])
    assert world.seen == ["mail"]


async def test_the_queue_of_the_row_decides(
    pool: AsyncPool,
    conn: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A known type in a queue that is worked runs there; in another queue it waits, and is warned of, once."""
    look_all_the_time(monkeypatch)
    Mail().enqueue(conn, queue="reports")
    Mail().enqueue(conn, queue="elsewhere")
    Unknown().enqueue(conn, queue="nowhere")
    conn.execute(LONG_AGO)
    world = World()
    async with running(pool, Mail, Report, context=world):
        await world.wait("mail ran")
        await eventually(conn, COUNT, [(2,)])
        conn.execute(BARE, ["mail"])  # two rounds of housekeeping are over when this has run
        await eventually(conn, COUNT, [(2,)])
    warnings = [
        record.getMessage() for record in caplog.records if "wait in queue" in record.getMessage()
    ]
    assert warnings == [
        "jobs of type mail wait in queue 'elsewhere', which no runner works; "
        "configure_queue('elsewhere') would work it"
    ]


async def test_queues_that_another_runner_works_are_not_warned_of(
    pool: AsyncPool,
    conn: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its jobs wait for it, be it busy."""
    look_all_the_time(monkeypatch)
    bulk = World()
    async with (
        running(pool, Blocking, BulkMail, context=bulk, workers=1),
        running(pool, Mail, Report, context=World()),
    ):
        Blocking().enqueue(conn)
        await bulk.wait("busy")
        Mail().enqueue(conn, queue="bulk")
        conn.execute(LONG_AGO)
        for _ in range(2):  # each is over after a round of the other's housekeeping
            conn.execute(BARE, ["report"])
            await eventually(conn, COUNT, [(2,)])
        bulk.signal("leave")
    assert "wait in queue" not in caplog.text


async def test_types_that_this_runner_does_not_know_are_warned_of(
    pool: AsyncPool,
    conn: psycopg.Connection,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once, when they have waited for a while: maybe a registration was forgotten. They are left alone (guarantee 7)."""
    look_all_the_time(monkeypatch)
    Unknown().enqueue(conn, queue="emails")
    Unknown().enqueue(conn, queue="nowhere")
    conn.execute(LONG_AGO)
    world = World()
    async with running(pool, Mail, context=world):
        for _ in range(2):  # each is over after a round of housekeeping
            conn.execute(BARE, ["mail"])
            await eventually(conn, COUNT, [(2,)])
    warnings = [
        record.getMessage()
        for record in caplog.records
        if "register_job_type" in record.getMessage()
    ]
    assert len(warnings) == 2
    text = "\n".join(sorted(warnings))
    assert "jobs of type unknown have been waiting in queue 'emails' for" in text
    assert (
        "jobs of type unknown have been waiting in queue 'nowhere', which no runner works, for"
        in text
    )


async def test_a_queue_without_a_type_of_its_own_can_be_worked(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """configure_queue is enough."""
    Mail().enqueue(conn, queue="elsewhere")
    world = World()
    async with running(pool, Mail, context=world, queues={"elsewhere": {"num_workers": 1}}):
        await world.wait("mail ran")


async def test_delayed_and_scheduled_jobs_run_when_they_are_due(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """By the database's clock, not before; the maintenance pass wakes the runner."""

    class Due(BackgroundJob[World]):
        what: str

        async def run(self, ctx: World) -> None:
            ctx.note((self.what, time.time()))

    now = time.time()
    Due(what="delay").enqueue(conn, delay=timedelta(seconds=0.6))
    Due(what="run_at").enqueue(conn, run_at=datetime.now(UTC) + timedelta(seconds=0.3))
    Due(what="far").enqueue(conn, delay=1000)
    Due(what="past").enqueue(conn, run_at=datetime(2000, 1, 1, tzinfo=UTC))
    world = World()
    async with running(pool, Due, context=world, poll=60):
        await eventually(conn, COUNT, [(1,)], seconds=5)
    ran = dict(world.seen)
    assert list(ran) == ["past", "run_at", "delay"] or list(ran) == ["past", "delay", "run_at"]
    assert 0.3 <= ran["run_at"] - now < 3
    assert 0.6 <= ran["delay"] - now < 3


async def test_what_was_due_long_ago_runs_in_the_order_of_its_times(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Staging draws positions in the order of run_at."""

    class Due(BackgroundJob[World]):
        number: int

        async def run(self, ctx: World) -> None:
            ctx.note(self.number)

    Due.enqueue_batch(conn, [Due(number=number) for number in range(30)], delay=1000)
    conn.execute(
        "UPDATE background_jobs SET run_at = now() - (data->>'number')::int * interval '1 minute'"
    )
    world = World()
    async with running(pool, Due, context=world, workers=1):
        await eventually(conn, COUNT, [(0,)])
    assert world.seen == list(reversed(range(30)))


async def test_two_classes_of_one_name(pool: AsyncPool) -> None:
    """Defining a second one is fine; registering it is refused."""

    class Mail2(BackgroundJob[World]):
        job_name = "mail"

        async def run(self, ctx: World) -> None: ...

    runner = make_runner(pool, Mail)
    runner.register_job_type(Mail)
    with pytest.raises(RegistrationError, match="both named 'mail'"):
        runner.register_job_type(Mail2)


async def test_a_runner_without_job_types(pool: AsyncPool) -> None:
    """There is nothing that it could run."""
    with pytest.raises(ConfigurationError, match="no job type is registered"):
        Runner(pool, None).start()


def test_starting_needs_a_loop() -> None:
    """It says so, and what to do instead."""
    runner = Runner("postgresql://", World()).register_job_type(Mail)
    with pytest.raises(RunnerError, match=r"needs a running asyncio loop.*start_in_thread"):
        runner.start()


def test_what_a_runner_can_work_on() -> None:
    """A pool, a DSN or a Storage; settings are checked where they are given."""
    target: Any = 42
    with pytest.raises(ConfigurationError, match=r"on int: give a DSN"):
        Runner(target, World())
    runner = Runner("postgresql://", World())
    with pytest.raises(ConfigurationError, match="num_workers"):
        runner.configure_default_queue(num_workers=0)
    with pytest.raises(ConfigurationError, match="grace"):
        Runner("postgresql://", None, grace=-1)


async def test_what_is_configured_after_the_start_is_refused(pool: AsyncPool) -> None:
    """It would not count, or only half; but the same configuration may be started again."""
    runner = make_runner(pool, Mail)
    assert repr(runner).endswith(": mail>")
    async with runner.start() as handle:
        late: list[Callable[[], object]] = [
            lambda: runner.register_job_type(Report),
            lambda: runner.configure_queue("notes", num_workers=1),
            lambda: runner.configure_default_queue(num_workers=1),
            runner.shutdown_when_queue_empty,
        ]
        for call in late:
            with pytest.raises(ConfigurationError, match=r"has been started: .* before start\(\)"):
                call()
        assert repr(handle) == f"<RunnerHandle session {handle.session}, running>"
        async with runner.start() as other:
            assert other.session != handle.session
    assert repr(handle).endswith(", ended>")


async def test_a_start_that_failed_leaves_the_runner_as_it_was(pool: AsyncPool) -> None:
    runner = Runner(pool, World())
    with pytest.raises(ConfigurationError, match="no job type is registered"):
        runner.start()
    async with runner.register_job_type(Mail).start():
        pass
