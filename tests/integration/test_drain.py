"""Many jobs: each runs exactly once, and nothing is left behind."""

from __future__ import annotations

from collections import Counter

import psycopg

from tests.conftest import AsyncPool
from tests.helpers.running import World, drain
from workers import BackgroundJob, Runner

TABLES = ("background_jobs", "dead_jobs", "archived_jobs", "worker_claims", "worker_sessions")


class Nothing(BackgroundJob[World]):
    number: int

    async def run(self, ctx: World) -> None:
        ctx.note(self.number)


class Transactional(BackgroundJob[World]):
    transactional = True
    number: int

    async def run(self, ctx: World) -> None:
        ctx.note(self.number)


async def test_20_000_jobs_with_default_settings(pool: AsyncPool, conn: psycopg.Connection) -> None:
    """Guarantee 1: none is lost; while nothing crashes none runs twice."""
    Nothing.enqueue_batch(conn, [Nothing(number=number) for number in range(20_000)])
    world = World()
    runner = Runner(pool, world).register_job_type(Nothing).shutdown_when_queue_empty()
    assert await runner.run() == []
    assert Counter(world.seen) == Counter(range(20_000))
    for table in TABLES:
        assert conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (0,), table


async def test_the_claims_of_transactional_jobs_are_forgotten(
    pool: AsyncPool, conn: psycopg.Connection
) -> None:
    """Their ends are written in their own transactions; the rows that stood for their claims go as well."""
    Transactional.enqueue_batch(conn, [Transactional(number=number) for number in range(200)])
    world = World()
    await drain(pool, Transactional, context=world)
    assert sorted(world.seen) == list(range(200))
    for table in TABLES:
        assert conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone() == (0,), table
