"""Jobs that were claimed when a process died are claimed apart, and never in advance. Rule 20, guarantee 6.

How they come to be counted is tested with real crashes elsewhere; here the counters are written by SQL.
"""

from __future__ import annotations

import asyncio
import itertools
import time

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import PATIENCE, World, drain, eventually, running
from workers import BackgroundJob
from workers.runtime.claimer import MOST_SUSPECTS
from workers.storage.base import Claimed, ClaimRequest
from workers.storage.postgres.storage import PostgresStorage

WAITING = "SELECT count(*) FROM background_jobs"
CLAIMED = "SELECT crashes, count(*) FROM background_jobs WHERE session_id IS NOT NULL GROUP BY 1 ORDER BY 1"


class Job(BackgroundJob[World]):
    max_crashes = 100
    number: int = 0

    async def run(self, ctx: World) -> None:
        ctx.note(self.number)


class Refill(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        await asyncio.sleep(0.0005)


class Fails(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        raise RuntimeError("at once")


class JobElsewhere(Job):
    job_name = "job_elsewhere"
    queue = "elsewhere"


class Hold(BackgroundJob[World]):
    max_crashes = 100

    async def run(self, ctx: World) -> None:
        ctx.note("began")
        ctx.signal("runs")
        await ctx.wait("may end")


class HoldElsewhere(Hold):
    job_name = "hold_elsewhere"
    queue = "elsewhere"


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """How many jobs each claim took, and the largest number of crashes among them."""
    made: list[tuple[int, int]] = []
    claim = PostgresStorage.claim

    async def note(self: PostgresStorage, request: ClaimRequest) -> Claimed:
        claimed = await claim(self, request)
        if claimed.jobs:
            made.append((len(claimed.jobs), max(job.crashes for job in claimed.jobs)))
        return claimed

    monkeypatch.setattr(PostgresStorage, "claim", note)
    return made


async def test_suspects_are_claimed_apart(
    pool: AsyncPool, conn: psycopg.Connection, claims: list[tuple[int, int]]
) -> None:
    """Beside ordinary jobs in batches: a claim that holds a suspect holds no ordinary job, and no more than workers are
    idle; those that killed their process twice come last, one by one."""
    Job.enqueue_batch(conn, [Job(number=number) for number in range(200)])
    conn.execute("UPDATE background_jobs SET crashes = 1 WHERE (data->>'number')::int % 10 = 0")
    conn.execute("UPDATE background_jobs SET crashes = 2 WHERE (data->>'number')::int % 40 = 0")
    world = World()
    await drain(pool, Job, context=world, workers=3)
    assert sorted(world.seen) == list(range(200))
    of_suspects = [claim for claim in claims if claim[1]]
    shared, alone = of_suspects[:-5], of_suspects[-5:]
    assert sum(size for size, _ in shared) == 15
    assert {crashes for _, crashes in shared} == {1}
    assert max(size for size, _ in shared) == 3
    assert alone == [(1, 2)] * 5
    assert sum(size for size, crashes in claims if not crashes) == 180


async def test_thousands_of_idle_workers_do_not_take_all_suspects_at_once(
    pool: AsyncPool, conn: psycopg.Connection, claims: list[tuple[int, int]]
) -> None:
    """If one of them kills the process again, the others have to be alone."""
    Job.enqueue_batch(conn, [Job(number=number) for number in range(100)])
    conn.execute("UPDATE background_jobs SET crashes = 1")
    world = World()
    await drain(pool, Job, context=world, workers=1000)
    assert sorted(world.seen) == list(range(100))
    assert max(size for size, _ in claims) == MOST_SUSPECTS


async def test_jobs_that_fail_at_once_leave_few_suspects(
    pool: AsyncPool, conn: psycopg.Connection, claims: list[tuple[int, int]]
) -> None:
    """How briefly they ran says nothing of the next one: were they held in advance, they would all be suspects."""
    Fails.enqueue_batch(conn, [Fails() for _ in range(100)])
    await drain(pool, Fails, context=World(), workers=3)
    assert max(size for size, _ in claims) == 3
    assert sum(size for size, _ in claims) == 100


async def test_one_that_crashed_twice_has_no_other_suspect_beside_it(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """In the whole runner, over all queues; ordinary jobs run, and when it has ended the next one does."""
    Hold.enqueue_batch(conn, [Hold() for _ in range(2)])
    HoldElsewhere.enqueue_batch(conn, [HoldElsewhere() for _ in range(2)])
    conn.execute("UPDATE background_jobs SET crashes = 2")
    Job(number=7).enqueue(conn)
    world = World()
    async with running(pool, Hold, HoldElsewhere, Job, context=world):
        await world.wait("runs")
        await eventually(conn, WAITING, [(4,)])
        # a round of housekeeping names the suspects again, and none is taken
        conn.execute("INSERT INTO background_jobs (job_type, data) VALUES ('job', '{}')")
        await eventually(conn, WAITING, [(4,)])
        assert conn.execute(CLAIMED).fetchall() == [(2, 1)]
        assert world.seen.count("began") == 1
        world.signal("may end")
        await eventually(conn, WAITING, [(0,)])
    assert world.seen.count("began") == 4


async def test_those_that_crashed_once_run_beside_each_other(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Most of them are innocent neighbours: one by one would take too long."""
    Hold.enqueue_batch(conn, [Hold() for _ in range(5)])
    conn.execute("UPDATE background_jobs SET crashes = 1")
    world = World()
    async with running(pool, Hold, context=world):
        await eventually(conn, CLAIMED, [(1, 5)])
        world.signal("may end")
        await eventually(conn, WAITING, [(0,)])


async def test_the_next_one_does_not_wait_for_housekeeping(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Of many that crashed twice each begins when the one before has ended, not a second later."""
    Job.enqueue_batch(conn, [Job(number=number) for number in range(8)])
    JobElsewhere.enqueue_batch(conn, [JobElsewhere(number=number) for number in range(8, 16)])
    conn.execute("UPDATE background_jobs SET crashes = 2")
    world = World()
    began = time.monotonic()
    async with running(pool, Job, JobElsewhere, context=world, poll=60):
        await eventually(conn, WAITING, [(0,)])
    assert sorted(world.seen) == list(range(16))
    assert time.monotonic() - began < 6


async def test_a_suspect_is_not_claimed_in_advance(
    pool: AsyncPool, conn: psycopg.Connection, claims: list[tuple[int, int]]
) -> None:
    """It waits in the table until a worker is free, however brief the jobs of its queue are."""
    Job.enqueue_batch(conn, [Job() for _ in range(100)])
    world = World()
    async with running(pool, Job, Hold, context=world, workers=1, listen=False, poll=60):
        await eventually(conn, WAITING, [(0,)])
        Hold().enqueue(conn)
        conn.execute("UPDATE background_jobs SET queue = NULL")  # so that housekeeping finds it
        await world.wait("runs")
        Job.enqueue_batch(conn, [Job(number=1) for _ in range(3)])
        conn.execute("UPDATE background_jobs SET crashes = 1 WHERE job_type = 'job'")
        # housekeeping tells of the suspects when it tells of a row without a queue
        conn.execute("INSERT INTO background_jobs (job_type, data) VALUES ('job', '{}')")
        await eventually(conn, "SELECT count(*) FROM background_jobs WHERE queue IS NULL", [(0,)])
        assert max(crashes for _, crashes in claims) == 0
        world.signal("may end")
        await eventually(conn, WAITING, [(0,)])
    assert max(crashes for _, crashes in claims) == 1


async def test_a_suspect_is_not_kept_waiting_by_brief_jobs(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Where jobs are always claimed in advance no worker would ever be idle for it."""
    world = World()
    async with running(pool, Refill, Job, context=world, workers=1):
        async with asyncio.timeout(PATIENCE):
            for refills in itertools.count():
                # more than one worker can do in that time
                Refill.enqueue_batch(conn, [Refill() for _ in range(100)])
                await asyncio.sleep(0.01)
                if refills == 20:
                    Job(number=-1).enqueue(conn)
                    conn.execute("UPDATE background_jobs SET crashes = 1 WHERE job_type = 'job'")
                if -1 in world.seen:
                    return
