"""Transactional jobs: their own SQL and their end commit together (rule 16, guarantee 3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg.rows import dict_row

from tests.storage.engines import PostgresEngine, Runner, mails
from workers.errors import StorageRejectedError
from workers.job import ClaimedJob, JobState
from workers.lifecycle import Archive, Delete, Release, Transition
from workers.storage.base import Guard, Settlement


class Work:
    """An attempt, the same for both kinds of connection."""

    def __init__(self, run: Any, job: ClaimedJob) -> None:
        self.run = run
        self.job = job

    async def execute(self, query: str) -> Any:
        cursor = self.run.connection.execute(query)
        return await cursor if hasattr(cursor, "__await__") else cursor

    async def finish(self, transition: Transition) -> None:
        guard = Guard(self.job.id, self.job.token)
        finished = self.run.finish(Settlement(guard, self.job.deduplicated, transition))
        if finished is not None:
            await finished


@pytest.fixture(params=["async", "sync"])
def transaction(request: pytest.FixtureRequest, postgres: PostgresEngine) -> Callable[..., Any]:
    """Opens the transaction of an attempt; yields None when the job is not the claim's."""

    @asynccontextmanager
    async def opened(runner: Runner, job: ClaimedJob) -> AsyncIterator[Work | None]:
        storage, guard = postgres.storage, Guard(job.id, job.token)
        if request.param == "async":
            async with storage.transaction(runner.session, guard) as run:
                yield None if run is None else Work(run, job)
        else:
            with storage.transaction_sync(runner.session, guard) as sync_run:
                yield None if sync_run is None else Work(sync_run, job)

    return opened


@pytest.fixture
def runner(postgres: PostgresEngine) -> Runner:
    postgres.conn.execute("CREATE TABLE effects (number integer)")
    return postgres.runner()


@pytest.fixture
async def job(postgres: PostgresEngine, runner: Runner) -> ClaimedJob:
    await postgres.storage.enqueue(mails(1))
    [claimed] = await runner.take()
    return claimed


def effects(postgres: PostgresEngine) -> int:
    ((number,),) = postgres.conn.execute("SELECT count(*) FROM effects")
    return int(number)


INSERT = "INSERT INTO effects VALUES (1)"


async def test_effects_and_end_commit_together(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Guarantee 3: nothing is seen before, everything after."""
    async with transaction(runner, job) as work:
        await work.execute(INSERT)
        await work.finish(Delete())
        assert effects(postgres) == 0
        assert await postgres.storage.find(job.id)
    assert effects(postgres) == 1
    assert await postgres.storage.find(job.id) is None


@pytest.mark.parametrize("finished", [False, True])
async def test_what_raises_leaves_nothing(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any, finished: bool
) -> None:
    """Guarantee 3: whatever the job raises, its effects and its end are rolled back; the claim stands."""

    async def attempt() -> None:
        async with transaction(runner, job) as work:
            await work.execute(INSERT)
            if finished:
                await work.finish(Delete())
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await attempt()
    assert effects(postgres) == 0
    assert await runner.complete([job]) == {job.id}


async def test_the_jobs_own_errors_stay_its_own(
    runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Rule 16: a failing statement of the job is the job's failure, not the store's."""
    with pytest.raises(psycopg.errors.UndefinedTable):
        async with transaction(runner, job) as work:
            await work.execute("SELECT FROM nowhere")


async def test_a_swallowed_error_is_an_error(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Rule 16: a transaction left in error can't be finished, so the effects before it are not lost silently."""

    async def attempt() -> None:
        async with transaction(runner, job) as work:
            await work.execute(INSERT)
            with pytest.raises(psycopg.errors.UndefinedTable):
                await work.execute("SELECT FROM nowhere")
            await work.finish(Delete())

    with pytest.raises(StorageRejectedError, match="in error"):
        await attempt()
    assert effects(postgres) == 0
    assert await runner.complete([job]) == {job.id}


async def test_a_commit_in_the_job_is_an_error(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Rule 16: the job's end could no longer be one with its effects."""

    async def attempt() -> None:
        async with transaction(runner, job) as work:
            await work.execute("COMMIT")
            await work.finish(Delete())

    with pytest.raises(StorageRejectedError, match="must not commit"):
        await attempt()
    assert await runner.complete([job]) == {job.id}


async def test_a_savepoint_is_fine(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Rule 16: the job may undo a part of its own work."""
    async with transaction(runner, job) as work:
        await work.execute(INSERT)
        await work.execute("SAVEPOINT a")
        await work.execute(INSERT)
        await work.execute("ROLLBACK TO a")
        await work.finish(Delete())
    assert effects(postgres) == 1


async def test_archive_in_the_transaction(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Rule 16: a finished job that is to be kept moves in the same transaction."""
    async with transaction(runner, job) as work:
        await work.finish(Archive("cancelled", "no"))
    record = await postgres.storage.find(job.id)
    assert record is not None
    assert (record.state, record.reason) == (JobState.CANCELLED, "no")


async def test_no_claim_no_run(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Rule 16: a job that was taken away is not run; the row is looked at under its lock."""
    await postgres.storage.release_claim(runner.session, job.token)
    async with transaction(runner, job) as work:
        assert work is None
    other = postgres.runner("other")
    [again] = await other.take()
    async with transaction(runner, again) as work:
        assert work is None
    async with transaction(other, again) as work:
        assert work is not None


async def test_a_running_transaction_holds_its_row(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Guarantee 3: a runner that is taken for dead while its transaction goes on doubles no effect: the sweep leaves the
    row alone until that has ended."""
    other = postgres.runner("other")
    async with transaction(runner, job) as work:
        await work.execute(INSERT)
        await runner.crash()
        other.maintain()
        # time moves for the sessions alone: the row of the job is locked
        postgres.conn.execute(
            "UPDATE worker_sessions SET suspect_since = suspect_since - interval '1 second'"
        )
        assert other.maintain().rescue
        assert other.control.rescue() == []
        await work.finish(Delete())
    assert effects(postgres) == 1
    assert other.control.rescue() == []
    assert await other.take(suspects=5) == []
    assert postgres.sessions() == {other.session}


async def test_connections_are_kept_and_given_back_clean(
    postgres: PostgresEngine, runner: Runner, transaction: Any
) -> None:
    """Rule 16: one connection serves one job after the other; what a job does to it does not reach the next."""
    await postgres.storage.enqueue(mails(3))
    pids = set()
    for job in await runner.take():
        async with transaction(runner, job) as work:
            assert work.run.connection.row_factory is not dict_row
            pids.add(work.run.connection.info.backend_pid)
            work.run.connection.row_factory = dict_row
            await work.finish(Delete())
    assert len(pids) == 1


async def test_transactions_run_side_by_side(
    postgres: PostgresEngine, runner: Runner, transaction: Any
) -> None:
    """Rule 16: these connections are their own, so many run at once, whatever the size of the pool."""
    await postgres.storage.enqueue(mails(6))
    first, *others = await runner.take()
    async with transaction(runner, first) as outer:
        for job in others:
            async with transaction(runner, job) as work:
                await work.finish(Delete())
        assert await runner.complete([]) == set()
        await outer.finish(Delete())
    assert await postgres.storage.stats() == []


async def test_a_lost_connection_ends_the_attempt(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Rule 16: the attempt fails, its effects are gone, and the next one gets a new connection."""

    async def attempt(*, killed: bool) -> None:
        async with transaction(runner, job) as work:
            await work.execute(INSERT)
            if killed:
                pid = work.run.connection.info.backend_pid
                postgres.conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
            await work.execute("SELECT")
            await work.finish(Delete())

    with pytest.raises(psycopg.OperationalError):
        await attempt(killed=True)
    assert effects(postgres) == 0
    await attempt(killed=False)
    assert effects(postgres) == 1


async def test_a_later_claim_is_not_run_by_an_earlier_one(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Rule 16: the row is locked with its token."""
    await runner.settle([job], Release())
    [again] = await runner.take()
    async with transaction(runner, job) as work:
        assert work is None
    async with transaction(runner, again) as work:
        assert work is not None


async def test_a_job_that_removes_its_own_row_is_an_error(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Rule 16: nothing of it is committed."""

    async def attempt() -> None:
        async with transaction(runner, job) as work:
            await work.execute(INSERT)
            await work.execute("DELETE FROM background_jobs")
            await work.finish(Delete())

    with pytest.raises(StorageRejectedError, match="row is gone"):
        await attempt()
    assert effects(postgres) == 0
    assert await runner.complete([job]) == {job.id}


async def test_a_connection_that_was_ended_while_idle_is_replaced(
    postgres: PostgresEngine, runner: Runner, job: ClaimedJob, transaction: Any
) -> None:
    """Rule 16: the server's farewell is not the next job's failure."""
    async with transaction(runner, job) as work:
        pid = work.run.connection.info.backend_pid
    postgres.conn.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    async with transaction(runner, job) as work:
        await work.execute(INSERT)
        await work.finish(Delete())
    assert effects(postgres) == 1
