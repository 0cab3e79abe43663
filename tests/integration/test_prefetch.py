"""How many jobs a runner claims: as many as it can start soon, and not one more. Rule 12."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.running import World, eventually, running
from workers import BackgroundJob
from workers.runtime import claimer
from workers.storage.base import Claimed, ClaimRequest
from workers.storage.postgres.storage import PostgresStorage

CLAIMED = "SELECT count(*) FROM background_jobs WHERE session_id IS NOT NULL"
WAITING = "SELECT count(*) FROM background_jobs"


class Brief(BackgroundJob[World]):
    number: int = 0

    async def run(self, ctx: World) -> None:
        ctx.note(self.number)


class Hold(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        ctx.note("held")
        ctx.signal("runs")
        await ctx.wait("may end")


class Slow(BackgroundJob[World]):
    async def run(self, ctx: World) -> None:
        await asyncio.sleep(0.06)
        ctx.note("slow")


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The limit of each claim, and how many jobs it took."""
    made: list[tuple[int, int]] = []
    claim = PostgresStorage.claim

    async def note(self: PostgresStorage, request: ClaimRequest) -> Claimed:
        claimed = await claim(self, request)
        made.append((request.limit, len(claimed.jobs)))
        return claimed

    monkeypatch.setattr(PostgresStorage, "claim", note)
    return made


@asynccontextmanager
async def warmed_up(
    pool: AsyncPool, conn: psycopg.Connection, world: World, workers: int
) -> AsyncIterator[None]:
    """A runner that has seen that jobs are brief, and so claims in advance."""
    Brief.enqueue_batch(conn, [Brief() for _ in range(100)])
    async with running(pool, Brief, Hold, context=world, workers=workers):
        await eventually(conn, WAITING, [(0,)])
        world.seen.clear()
        yield


async def test_nothing_is_claimed_in_advance_before_20_runs(
    pool: AsyncPool, conn: psycopg.Connection, claims: list[tuple[int, int]]
) -> None:
    """The first claims take what the free workers can start, then batches grow."""
    Brief.enqueue_batch(conn, [Brief() for _ in range(1000)])
    async with running(pool, Brief, context=World(), workers=3):
        await eventually(conn, WAITING, [(0,)])
    limits = [limit for limit, _ in claims]
    assert set(limits[:7]) <= {1, 2, 3}, "7 claims of at most 3"
    assert max(limits) > 100
    assert max(limits) <= 500


async def test_long_jobs_are_not_claimed_in_advance(
    pool: AsyncPool, conn: psycopg.Connection, claims: list[tuple[int, int]]
) -> None:
    """Another runner could start them: no claim takes more than there are workers."""
    Slow.enqueue_batch(conn, [Slow() for _ in range(22)])
    world = World()
    async with running(
        pool, Slow, context=world, workers=1, queues={"default": {"num_workers": 1}}
    ):
        await eventually(conn, WAITING, [(0,)])
    assert max(limit for limit, _ in claims) == 1
    assert len(world.seen) == 22


async def test_what_is_not_started_within_a_second_is_given_back(
    pool: AsyncPool, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uncounted, and others can have it, when jobs turn out to be longer than those before."""
    monkeypatch.setattr(claimer, "START_WITHIN", 0.2)
    world = World()
    async with warmed_up(pool, conn, world, workers=2):
        Hold.enqueue_batch(conn, [Hold() for _ in range(20)])
        await world.wait("runs")
        await eventually(conn, f"SELECT count > 2 FROM ({CLAIMED}) AS now", [(True,)])
        await eventually(conn, CLAIMED, [(2,)])
        other = World()
        other.signal("may end")
        async with running(pool, Hold, context=other):
            await eventually(conn, WAITING, [(2,)])
        query = "SELECT sum(retries), sum(crashes) FROM background_jobs"
        assert conn.execute(query).fetchone() == (0, 0)
        world.signal("may end")
        await eventually(conn, WAITING, [(0,)])
    assert (len(world.seen), len(other.seen)) == (2, 18)


async def test_a_long_job_does_not_hold_up_the_brief_ones_behind_it(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """They were claimed in advance, and go to the other workers."""
    world = World()
    async with warmed_up(pool, conn, world, workers=2):
        Hold().enqueue(conn)
        Brief.enqueue_batch(conn, [Brief(number=number) for number in range(300)])
        await eventually(conn, WAITING, [(1,)])
        assert world.seen == ["held", *range(300)]
        world.signal("may end")


async def test_two_runners_share(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Each runs a part; none runs twice."""
    first, second = World(), World()
    async with running(pool, Brief, context=first), running(pool, Brief, context=second):
        for start in range(0, 4000, 500):
            Brief.enqueue_batch(conn, [Brief(number=start + number) for number in range(500)])
            await asyncio.sleep(0)
        await eventually(conn, WAITING, [(0,)])
    assert sorted(first.seen + second.seen) == list(range(4000))
    assert first.seen
    assert second.seen


async def test_a_runner_takes_no_more_than_max_batch(
    pool: AsyncPool, conn: psycopg.Connection, claims: list[tuple[int, int]]
) -> None:
    """The setting caps every claim."""
    Brief.enqueue_batch(conn, [Brief() for _ in range(500)])
    async with running(pool, Brief, context=World(), workers=50, max_batch=7):
        await eventually(conn, WAITING, [(0,)])
    assert {limit for limit, _ in claims} <= set(range(1, 8))


async def test_wakes_while_all_workers_are_idle_are_answered_at_once(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """One that comes while claimed jobs are on their way to the workers is not forgotten until the next poll."""
    world = World()
    async with running(pool, Brief, context=world, workers=10, poll=60):
        for number in range(200):
            Brief(number=number).enqueue(conn)
            if number % 3 == 0:
                await asyncio.sleep(0)
        await eventually(conn, WAITING, [(0,)], seconds=2)
    assert sorted(world.seen) == list(range(200))
