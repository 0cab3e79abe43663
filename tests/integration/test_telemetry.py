"""What subscribers are told of jobs: which events, in which order, and at what cost when nobody listens."""

from __future__ import annotations

import logging
from contextvars import ContextVar
from typing import Any

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain, eventually, listening_to, running
from workers import BackgroundJob, telemetry
from workers.lifecycle import Archive, Bury, Completed, Delete, Failed, Retry
from workers.telemetry import (
    JobDied,
    JobFenced,
    JobFinished,
    JobStarted,
    JobSuperseded,
    subscribe,
)

tag: ContextVar[str] = ContextVar("tag", default="none")


class Fail(BackgroundJob[World]):
    max_attempts = 2
    backoff = 0

    async def run(self, ctx: World) -> None:
        tag.set("the job's")
        raise ValueError("no")


class Note(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.note("ran")
        ctx.signal("ran")


class Keep(BackgroundJob[World]):
    archive = True
    transactional = True

    async def run(self, ctx: World) -> None: ...


class Twin(BackgroundJob[World]):
    deduplicated = True
    backoff = 0

    async def run(self, ctx: World) -> None:
        ctx.note("run")
        ctx.signal("runs")
        await ctx.wait("may end")
        raise ValueError


def shape(event: Any) -> tuple[Any, ...]:
    outcome = getattr(event, "outcome", None)
    transition = getattr(event, "transition", None)
    return type(event), event.job.retries, type(outcome), type(transition)


async def test_the_events_of_a_job_come_in_order(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Started, finished with its outcome and what will be written; died at the end. With the session and the duration."""
    job_id = Fail().enqueue(conn)
    with listening_to(JobStarted, JobFinished, JobDied) as heard:
        async with running(pool, Fail, context=World()) as handle:
            await heard.wait_for(lambda event: isinstance(event, JobDied))
            session = handle.session
    none = type(None)
    assert [shape(event) for event in heard] == [
        (JobStarted, 0, none, none),
        (JobFinished, 0, Failed, Retry),
        (JobStarted, 1, none, none),
        (JobFinished, 1, Failed, Bury),
        (JobDied, 1, Failed, Bury),
    ]
    for event in heard:
        assert isinstance(event, JobStarted | JobFinished | JobDied)
        assert (event.session, event.job.id) == (session, job_id)
        if isinstance(event, JobFinished):
            assert 0 <= event.duration < 5
            assert isinstance(event.outcome, Failed)
            assert isinstance(event.outcome.exception, ValueError)


async def test_the_transition_is_what_is_written(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Also when it was written in the job's own transaction."""
    Note().enqueue(conn)
    Keep().enqueue(conn)
    with listening_to(JobFinished) as heard:
        await drain(pool, Note, Keep, context=World())
    found = {event.job.job_type: (event.outcome, event.transition) for event in heard}
    assert found == {"note": (Completed(), Delete()), "keep": (Completed(), Archive("completed"))}


def test_event_means_all_of_them() -> None:
    """As it does to a type checker."""
    heard: list[telemetry.Event] = []
    with subscribe(heard.append, telemetry.Event):
        telemetry.emit(event := telemetry.SessionStarted(session=1))
    telemetry.emit(event)
    assert heard == [event]


async def test_a_death_is_told_in_the_context_of_its_job(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """What keeps its state in context variables finds it there."""
    found = []
    Fail().enqueue(conn)
    with subscribe(lambda event: found.append(tag.get()), JobDied), listening_to(JobDied) as heard:
        async with running(pool, Fail, context=World()):
            await heard.wait_for()
    assert found == ["the job's"]


async def test_a_subscriber_that_raises_harms_nobody(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """It is in the log; jobs, and the other subscribers, go on."""

    def broken(event: telemetry.Event) -> None:
        raise ZeroDivisionError

    Note.enqueue_batch(conn, [Note() for _ in range(5)])
    Fail().enqueue(conn)
    world = World()
    with subscribe(broken, JobStarted, JobFinished, JobDied), listening_to(JobFinished) as heard:
        await drain(pool, Note, Fail, context=world)
        await heard.wait_for(count=6)
    assert world.seen == ["ran"] * 5
    assert "a telemetry subscriber failed" in caplog.text


async def test_nothing_is_built_without_subscribers(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An event of a job costs one look when nobody wants it."""
    built: list[type[telemetry.Event]] = []
    emit = telemetry.emit

    def count(event: telemetry.Event) -> None:
        built.append(type(event))
        emit(event)

    monkeypatch.setattr(telemetry, "emit", count)
    world = World()
    with subscribe(lambda event: None, JobStarted):
        Note().enqueue(conn)
        await drain(pool, Note, context=world)
    assert built.count(JobStarted) == 1
    built.clear()
    Note.enqueue_batch(conn, [Note() for _ in range(20)])
    await drain(pool, Note, context=world)
    assert len(world.seen) == 21
    assert {JobStarted, JobFinished, JobDied}.isdisjoint(built), (
        "a subscription that ended counts no more"
    )


async def test_a_hook_for_job_contexts(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs in the job's context before its code; one that raises is no failure of the job."""

    class See(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.note(tag.get())

    def broken(job: object) -> None:
        raise ZeroDivisionError

    hooks = [*telemetry.job_context_hooks, broken, lambda job: tag.set(f"of job {job.id}")]
    monkeypatch.setattr(telemetry, "job_context_hooks", hooks)
    job_id = See().enqueue(conn)
    world = World()
    await drain(pool, See, context=world)
    assert world.seen == [f"of job {job_id}"]
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)


async def test_a_job_that_was_superseded(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Rule 26: on its way back to waiting it meets an identical one, makes way, and that is told."""
    first = Twin().enqueue(conn)
    world = World()
    with listening_to(JobSuperseded) as heard:
        async with running(pool, Twin, context=world, workers=1):
            await world.wait("runs")
            second = Twin().enqueue(conn, delay=1000)
            world.signal("may end")
            event = await heard.wait_for()
    assert event.job_id == first
    assert conn.execute("SELECT id FROM background_jobs").fetchall() == [(second,)]
    assert world.seen == ["run"]


async def test_a_write_that_was_refused(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Guarantee 2: a job that was taken away is fenced: nothing is written, and that is told."""

    class Lose(BackgroundJob[World]):
        async def run(self, ctx: World) -> None:
            ctx.signal("runs")
            await ctx.wait("may end")

    job_id = Lose().enqueue(conn)
    world = World()
    with listening_to(JobFenced) as heard:
        async with running(pool, Lose, context=world):
            await world.wait("runs")
            conn.execute("UPDATE background_jobs SET claim_token = claim_token + 1000")
            world.signal("may end")
            event = await heard.wait_for()
            assert conn.execute("SELECT retries FROM background_jobs").fetchall() == [(0,)]
    assert event.job_id == job_id
    assert "was taken away" in caplog.text


async def test_records_of_jobs_carry_their_fields(
    pool: AsyncPool, conn: psycopg.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """Structured logs: job_id, job_type, queue, attempt and session on every record about a job."""
    caplog.set_level(logging.DEBUG, "workers.jobs")
    job_id = Fail().enqueue(conn)
    async with running(pool, Fail, context=World()) as handle:
        await eventually(conn, "SELECT count(*) FROM dead_jobs", [(1,)])
        session = handle.session
    records = [vars(record) for record in caplog.records if record.name == "workers.jobs"]
    assert [record["levelname"] for record in records] == ["DEBUG", "WARNING", "DEBUG", "ERROR"]
    for record, attempt in zip(records, (1, 1, 2, 2), strict=True):
        fields = ("job_id", "job_type", "queue", "attempt", "session")
        assert [record[name] for name in fields] == [job_id, "fail", "default", attempt, session]
