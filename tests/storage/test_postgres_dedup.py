"""Deduplication between connections: the lock that keeps a job from running on data it can't see, and races (rule 24)."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

import anyio
import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.storage.engines import Engine, PostgresEngine, Runner, guards, ids, mail
from workers.job import ClaimedJob, JobState
from workers.lifecycle import Bury, Release, Retry
from workers.storage.base import Settled
from workers.storage.postgres import apart

SAME = "SELECT workers_enqueue('mail', %s, 'default', deduplicated => true)"


async def produce(conn: psycopg.AsyncConnection, number: int = 1) -> int | None:
    """Enqueue mail(number) on a caller's own connection."""
    row = await (await conn.execute(SAME, [Jsonb({"number": number})])).fetchone()
    assert row is not None
    return row[0]  # type: ignore[no-any-return]


async def test_the_row_waits_for_the_transaction(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """FAULTS 13c: T1 changes data and is told that an identical job waits; that job does not run before T1 has ended."""
    runner = postgres.runner()
    [waiting] = await postgres.storage.enqueue([mail(deduplicated=True)])
    async with aconn.transaction():
        assert await produce(aconn) is None
        for thorough in (True, False):
            assert await runner.take(thorough=thorough) == []
    assert ids(await runner.take()) == [waiting]


async def test_a_rolled_back_transaction_frees_the_row(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 24: the lock goes with the transaction, however it ends."""
    runner = postgres.runner()
    [waiting] = await postgres.storage.enqueue([mail(deduplicated=True)])
    async with aconn.transaction(force_rollback=True):
        assert await produce(aconn) is None
        assert await runner.take() == []
    assert ids(await runner.take()) == [waiting]


@pytest.mark.parametrize("locked_first", [False, True])
async def test_a_claimed_job_is_no_answer(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection, locked_first: bool
) -> None:
    """Rule 24: while a claim of the identical job is on its way the enqueue waits for it, and then writes a new job."""
    runner = postgres.runner()
    [waiting] = await postgres.storage.enqueue([mail(deduplicated=True)])
    fresh: list[int | None] = []

    async def enqueue() -> None:
        fresh.append(await produce(aconn))

    async with anyio.create_task_group() as tasks:
        with postgres.conn.transaction():
            claim = "UPDATE background_jobs SET session_id = 1, dedup_key = NULL"
            postgres.conn.execute(
                "SELECT FROM background_jobs FOR UPDATE" if locked_first else claim
            )
            tasks.start_soon(enqueue)
            await postgres.wait_blocked()
            postgres.conn.execute(claim)
    assert fresh != [None]
    assert ids(await runner.take()) == fresh
    assert waiting not in fresh


async def test_an_uncommitted_twin_is_waited_for(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 24: the second of two transactions waits for the first, and enqueues itself when that rolls back."""
    fresh: list[int | None] = []

    async def enqueue(number: int) -> None:
        fresh.append(await produce(aconn, number))

    for number, commits in enumerate((False, True)):
        async with anyio.create_task_group() as tasks:
            with postgres.conn.transaction(force_rollback=not commits):
                postgres.conn.execute(SAME, [Jsonb({"number": number})])
                tasks.start_soon(enqueue, number)
                await postgres.wait_blocked()
    assert [job_id is None for job_id in fresh] == [False, True]


async def test_batches_that_share_keys_do_not_deadlock(
    database_url: str, postgres: PostgresEngine
) -> None:
    """Rule 24: batches visit their keys in one order, whatever the caller's."""
    enqueuers, rounds, keys = 4, 4, 300
    written: list[int] = []
    query = "SELECT id FROM workers_enqueue_deduplicated('mail', %s, 0::smallint, 'default', NULL)"

    async def enqueue(conn: psycopg.AsyncConnection, numbers: list[int]) -> None:
        data = [f'{{"number": {number}}}' for number in numbers]
        rows = await (await conn.execute(query, [data])).fetchall()
        written.extend(row[0] for row in rows if row[0] is not None)

    async with AsyncExitStack() as stack:
        conns = [
            await stack.enter_async_context(
                await psycopg.AsyncConnection.connect(database_url, autocommit=True)
            )
            for _ in range(enqueuers)
        ]
        for number in range(rounds):
            fresh = range(number * keys, (number + 1) * keys)
            async with anyio.create_task_group() as tasks:
                for seed, conn in enumerate(conns):
                    tasks.start_soon(enqueue, conn, random.Random(seed).sample(fresh, keys))
    assert len(written) == rounds * keys
    assert len(await postgres.runner().take(2000)) == rounds * keys


async def rescued(runner: Runner, other: Runner, jobs: list[ClaimedJob]) -> int:
    await other.crash()
    return sum(dead.jobs for dead in runner.bury())


async def released(runner: Runner, other: Runner, jobs: list[ClaimedJob]) -> int:
    return other.control.release(guards(jobs)).count


async def closed(runner: Runner, other: Runner, jobs: list[ClaimedJob]) -> int:
    return other.control.close().count


Going = Callable[[Runner, Runner, list[ClaimedJob]], Awaitable[int]]


@pytest.mark.parametrize("together", [1, 3])
async def test_a_give_back_does_not_wait_for_long(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection, together: int
) -> None:
    """Rule 26: a job that can't go back because an identical one is just being enqueued keeps nobody else from it."""
    runner = postgres.runner()
    await postgres.storage.enqueue([mail(number, deduplicated=True) for number in range(together)])
    await runner.take(token=7000)
    async with aconn.transaction():
        assert await produce(aconn, 0) is not None
        assert runner.control.close().count == together - 1
    other = postgres.runner("other")
    other.bury()
    # the one that was left behind counts as crashed, and the identical job answers for it
    assert len(await other.take()) == together - 1
    assert len(await other.take(suspects=1)) == 1
    assert await other.take(suspects=5) == []


@pytest.mark.parametrize("held_up", [range(110), range(15, 120)], ids=["first", "last"])
@pytest.mark.parametrize("going", [rescued, released, closed])
async def test_many_that_have_to_wait_keep_no_other(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection, going: Going, held_up: range
) -> None:
    """Rule 26: however many a transaction has enqueued again, and wherever they stand."""
    runner, other = postgres.runner(), postgres.runner("other")
    await postgres.storage.enqueue([mail(number, deduplicated=True) for number in range(120)])
    jobs = await other.take(120)
    async with aconn.transaction(force_rollback=True):
        for number in held_up:
            assert await produce(aconn, number) is not None
        # a session that goes on gives them a second at a time, which a busy machine may need more than one of
        free, passes = 120 - len(held_up), 1 if going is closed else 10
        while free and passes:
            free -= await going(runner, other, jobs)
            passes -= 1
        assert free == 0
    if going is not closed:
        assert await going(runner, other, [jobs[number] for number in held_up]) == len(held_up)


@pytest.mark.parametrize("going", [rescued, released])
async def test_those_among_many_that_have_to_wait_have_their_turn(
    postgres: PostgresEngine,
    aconn: psycopg.AsyncConnection,
    monkeypatch: pytest.MonkeyPatch,
    going: Going,
) -> None:
    """Rule 26: one pass has no time for all; the next one begins with those that it did not get to."""
    monkeypatch.setattr(apart, "_MAX_BLOCKED", 3)
    runner, other = postgres.runner(), postgres.runner("other")
    await postgres.storage.enqueue([mail(number, deduplicated=True) for number in range(12)])
    jobs = await other.take()
    async with aconn.transaction(force_rollback=True):
        for number in range(0, 12, 2):
            assert await produce(aconn, number) is not None
        assert sum([await going(runner, other, jobs) for _ in range(6)]) == 6
    assert await going(runner, other, jobs) == 6


async def test_identical_jobs_after_a_release(engine: Engine, runner: Runner) -> None:
    """Rule 25: a row that went back is in the way of an identical one again."""
    await engine.storage.enqueue([mail(deduplicated=True)])
    await runner.settle(await runner.take(), Release())
    assert await engine.storage.enqueue([mail(deduplicated=True)]) == [None]


async def test_one_that_has_to_wait_holds_up_no_other(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rules 14 and 26: a retry that meets an open transaction is tried again later; those of its batch are written, or have
    made way, and that is told."""
    runner = postgres.runner()
    await postgres.storage.enqueue([mail(number, deduplicated=True) for number in (1, 2, 3, 4)])
    jobs = await runner.take()
    await postgres.storage.enqueue([mail(4, deduplicated=True, queue="elsewhere")])
    async with aconn.transaction(force_rollback=True):
        assert await produce(aconn, 2) is not None
        settled = await runner.settle(jobs, Retry(0.0, "boom"))
        assert settled == Settled([jobs[0].id, jobs[2].id], [jobs[3].id], [jobs[1].id])
        assert jobs[1].token in runner.control.claims(), "it would be found no more"
        assert ids(await runner.take()) == [jobs[0].id, jobs[2].id]
    settled = await runner.settle(jobs, Retry(0.0, "boom"))
    assert list(settled.written) == [jobs[1].id]


@pytest.mark.parametrize("held_up", [(0,), (1, 4), (0, 1, 2, 3, 4)])
async def test_dead_jobs_that_have_to_wait_stay_dead_and_hold_up_no_other(
    postgres: PostgresEngine,
    aconn: psycopg.AsyncConnection,
    caplog: pytest.LogCaptureFixture,
    held_up: tuple[int, ...],
) -> None:
    """Rule 26: a requeue does not wait for a forgotten transaction; who calls it learns which ones to requeue again."""
    runner = postgres.runner()
    await postgres.storage.enqueue([mail(number, deduplicated=True) for number in range(5)])
    jobs = await runner.take()
    await runner.settle(jobs, Bury("over"))
    dead = ids(jobs)
    async with aconn.transaction(force_rollback=True):
        for number in held_up:
            assert await produce(aconn, number) is not None
        waiting = [dead[number] for number in held_up]
        assert await postgres.storage.requeue(dead) == [one for one in dead if one not in waiting]
        assert ids(await postgres.storage.list_jobs(JobState.DEAD)) == waiting
    (record,) = [found for found in caplog.records if "not requeued" in found.message]
    assert record.message.endswith(f"({', '.join(map(str, waiting))})")
    assert await postgres.storage.requeue(dead) == waiting


async def test_a_requeue_does_not_break_off_a_producer(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 26: the producer comes to wait for a job that is back already, while the requeue waits for the producer."""
    runner = postgres.runner()
    await postgres.storage.enqueue([mail(number, deduplicated=True) for number in (1, 2)])
    jobs = await runner.take()
    await runner.settle(jobs, Bury("over"))
    back: list[int] = []

    async def requeue() -> None:
        back.extend(await postgres.storage.requeue(ids(jobs)))

    async with aconn.transaction():
        # sooner than the requeue: it would be the one that is broken off
        await aconn.execute("SET LOCAL deadlock_timeout = '500ms'")
        assert await produce(aconn, 2) is not None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(requeue)
            await postgres.wait_blocked()
            await produce(aconn, 1)
    assert len(await postgres.storage.list_jobs(JobState.AVAILABLE)) == 2
