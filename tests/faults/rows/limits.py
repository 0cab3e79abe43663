"""Row 18: fewer connections than everybody would like to have."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from tests.faults.harness import Bench, Found, Scale, row
from tests.faults.judging import end_all, judge_survivors, swept_away
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, EffectInThread, Stage
from tests.helpers.history import History
from tests.helpers.own_server import OwnServer
from tests.helpers.processes import Crew
from tests.helpers.producers import producing
from tests.helpers.runners import eventually, left
from workers import Runner

_KINDS: tuple[Any, ...] = (Brief, Effect, EffectInThread)
_TYPES = "brief,effect,effect_in_thread"
_QUEUES = ("one", "two", "three", "four")
#: Seconds within which all runners that start at once are connected.
_WITHIN = 60.0
_PATIENCE = 120.0
#: A runner's last connection; without it everything takes a little longer.
_LISTENING = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN %'"


@row(
    "18",
    "small pool, max_connections, 200 runners at once",
    "a pool of one connection under 40 workers; a server whose connections are all taken, under transactional jobs; 200 "
    "runners at once on one that has 3 connections for each: no deadlock, all connected within 60 s, lost 0, twice 0",
)
def few_connections(bench: Bench) -> Found:
    found = Found(injected=0, jobs=0)
    _pool_of_one(bench, found)
    with bench.server() as server:
        _at_once(bench, found, server)
        if bench.scale is not Scale.TINY:
            _all_taken(bench, found, server)
    return found


def _pool_of_one(bench: Bench, found: Found) -> None:
    """Its only connection is never held for long, so that everybody gets it in turn."""
    jobs = bench.pick(full=10_000, quick=1_000, tiny=120)
    with (
        bench.database() as url,
        psycopg.connect(url, autocommit=True) as conn,
        bench.history() as history,
    ):
        conn.execute(EFFECTS)
        ids: dict[Any, list[int | None]] = {kind: [] for kind in _KINDS}
        for number in range(jobs // len(_QUEUES)):
            kind, queue = _KINDS[number % len(_KINDS)], _QUEUES[number % len(_QUEUES)]
            batch = [kind(key=key, seconds=0.01) for key in range(len(_QUEUES))]
            ids[kind] += kind.enqueue_batch(conn, batch, queue=queue)
        session = asyncio.run(_until_empty(url, Stage("here", history.add)))
        effects = [*ids[Effect], *ids[EffectInThread]]
        judge_survivors(found, conn, history, [], ids[Brief], effects, sessions=[session])
        found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")
        found.injected += 1


async def _until_empty(url: str, stage: Stage) -> int:
    """One runner on a pool of one; its session."""
    async with AsyncConnectionPool(url, min_size=1, max_size=1, open=False) as pool:
        runner = Runner(pool, stage).shutdown_when_queue_empty()
        for kind in _KINDS:
            runner.register_job_type(kind)
        for queue in _QUEUES:
            runner.configure_queue(queue, num_workers=10)
        async with asyncio.timeout(_PATIENCE), runner.start() as handle:
            await handle.wait_for_shutdown()
        return handle.session


def _at_once(bench: Bench, found: Found, server: OwnServer) -> None:
    """Many runners, with room for what each of them needs and hardly more; then without any."""
    runners, processes = bench.pick(full=(200, 4), quick=(40, 2), tiny=(12, 2))
    with _limited(bench, server, 3 * runners + 5) as (_, conn, history, workers):
        began = time.monotonic()
        for _ in range(processes):
            workers.start("brief", runners=runners // processes, workers=2)
        ready = history.wait_for("ready", count=runners, seconds=2 * _WITHIN)
        eventually(lambda: conn.execute(_LISTENING).fetchone() == (runners,), 2 * _WITHIN)
        found.recovered(time.monotonic() - began, within=_WITHIN * bench.margin)
        with _taken(server.dsn):
            ids = Brief.enqueue_batch(conn, [Brief(key=key) for key in range(10 * runners)])
            eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
        found.injected += runners
        sessions = {event.session for event in ready}
        end_all(found, workers)
        judge_survivors(found, conn, history, [], ids, sessions=sessions)
        swept_away(found, conn, workers, "brief")


def _all_taken(bench: Bench, found: Found, server: OwnServer) -> None:
    """Transactional jobs, for whose connections there is no room, and again and again somebody who takes what is left."""
    times = bench.pick(full=20, quick=3, tiny=1)
    with _limited(bench, server, 28) as (_, conn, history, workers):
        members = [workers.start(_TYPES, workers=30) for _ in range(2)]
        sessions = {member.ready() for member in members}
        with (
            producing(workers, Brief, producers=1) as brief,
            producing(workers, Effect, EffectInThread, producers=1, seconds=0.05) as transactional,
        ):
            for _ in range(times):
                for taken in (contextlib.nullcontext(), _taken(server.dsn)):
                    with taken:
                        began, some = time.monotonic(), bench.chance.randrange(50, 200)
                        history.wait_for(
                            "end",
                            count=some,
                            where=lambda event: event.at > began,  # noqa: B023
                        )
                found.injected += 1
        eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
        end_all(found, workers)
        judge_survivors(found, conn, history, brief + transactional, sessions=sessions)
        swept_away(found, conn, workers, _TYPES)


@contextlib.contextmanager
def _limited(
    bench: Bench, server: OwnServer, connections: int
) -> Iterator[tuple[str, psycopg.Connection[Any], History, Crew]]:
    """The server with so many connections: a database on it, a connection, a history, worker processes."""
    with psycopg.connect(server.dsn, autocommit=True) as conn:
        conn.execute(f"ALTER SYSTEM SET max_connections = {connections}".encode())
    server.stop()
    server.start()
    with (
        bench.database(server.dsn) as url,
        psycopg.connect(url, autocommit=True) as conn,
        bench.history() as history,
        bench.workers(url, history) as workers,
    ):
        conn.execute(EFFECTS)
        yield url, conn, history, workers


@contextlib.contextmanager
def _taken(dsn: str) -> Iterator[None]:
    """Every connection that the server still has is somebody else's."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(psycopg.OperationalError):
            while True:
                stack.enter_context(psycopg.connect(dsn))
        yield
