"""The engines under test, behind one handle: a Storage, runners that can crash, and time that moves when it is told to."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, Protocol

import anyio
import psycopg
from psycopg import sql
from psycopg_pool import AsyncConnectionPool

from workers.job import ClaimedJob, JobRecord, NewJob
from workers.lifecycle import Transition
from workers.storage.base import (
    Capabilities,
    Claimed,
    ClaimRequest,
    Control,
    DeadSession,
    Guard,
    Maintenance,
    MaintenanceRequest,
    Scan,
    Settled,
    Settlement,
    Storage,
)
from workers.storage.memory import MemoryStorage
from workers.storage.postgres.storage import PostgresStorage

LEASE = 15.0
NEVER = 3600.0  # seconds that no test lasts

#: Everything stored that is a time: moving these back is the same as moving the clock forward.
TIMES = {
    "background_jobs": ("run_at", "created_at", "last_retry"),
    "dead_jobs": ("created_at", "last_retry", "died_at"),
    "archived_jobs": ("created_at", "last_retry", "finished_at"),
    "worker_sessions": ("lease_until", "suspect_since"),
}

_tokens = count(1)


def mail(number: int = 1, **settings: Any) -> NewJob:
    """A job of type "mail" in the queue "default"."""
    return NewJob(
        **{"job_type": "mail", "queue": "default", "data": f'{{"number": {number}}}'} | settings
    )


def mails(how_many: int, **settings: Any) -> list[NewJob]:
    """Different jobs of type "mail"."""
    return [mail(number, **settings) for number in range(how_many)]


def ids(jobs: Iterable[ClaimedJob | JobRecord]) -> list[int]:
    return [job.id for job in jobs]


def guards(jobs: Iterable[ClaimedJob]) -> list[Guard]:
    return [Guard(job.id, job.token) for job in jobs]


class Runner:
    """What a runner is to an engine: a session that claims, settles and keeps house."""

    def __init__(self, engine: Engine, control: Control, session: int) -> None:
        self.engine = engine
        self.control = control
        self.session = session

    async def claim(
        self,
        limit: int = 100,
        *,
        types: tuple[str, ...] = ("mail",),
        queue: str = "default",
        token: int | None = None,
        thorough: bool = True,
        suspects: int = 0,
    ) -> Claimed:
        request = ClaimRequest(
            session=self.session,
            token=next(_tokens) if token is None else token,
            queue=queue,
            job_types=types,
            limit=limit,
            scan=Scan(thorough=thorough, suspects=suspects),
        )
        return await self.engine.storage.claim(request)

    async def take(self, limit: int = 100, **settings: Any) -> list[ClaimedJob]:
        """The jobs of a claim."""
        return list((await self.claim(limit, **settings)).jobs)

    async def complete(self, jobs: Iterable[ClaimedJob], closed: Iterable[int] = ()) -> set[int]:
        done = await self.engine.storage.complete(self.session, guards(jobs), list(closed))
        return set(done.written)

    async def settle(
        self, jobs: Iterable[ClaimedJob], *transitions: Transition, closed: Iterable[int] = ()
    ) -> Settled:
        """Write one transition for all jobs, or one for each."""
        chosen = list(jobs)
        each = list(transitions) if len(transitions) > 1 else list(transitions) * len(chosen)
        settlements = [
            Settlement(Guard(job.id, job.token), job.deduplicated, transition)
            for job, transition in zip(chosen, each, strict=True)
        ]
        return await self.engine.storage.settle(self.session, settlements, list(closed))

    def maintain(
        self,
        declared: Mapping[str, str] | None = None,
        queues: Iterable[str] = ("default",),
        *,
        renew: bool = True,
        lease: float = LEASE,
        probe: str | None = None,
    ) -> Maintenance:
        known = {"mail": "default"} if declared is None else declared
        request = MaintenanceRequest(lease=lease, declared=known, queues=list(queues), renew=renew)
        return self.control.maintain(request, probe=probe)

    async def crash(self) -> None:
        """Vanish: what holds the session's lock is gone when this returns."""
        self.control.abandon()
        await self.engine.wait_unlocked(self.session)

    def bury(self) -> list[DeadSession]:
        """Sweep twice, as far apart as a death needs, and give back what was found."""
        self.maintain()
        self.engine.advance(1)
        self.maintain()
        return self.control.rescue()


class Engine(Protocol):
    """An engine and the hands that a test needs on it."""

    storage: Storage

    def runner(
        self, name: str = "runner", *, lease: float = LEASE, queues: tuple[str, ...] = ()
    ) -> Runner:
        """A new session."""

    def advance(self, seconds: float) -> None:
        """Move the engine's time."""

    def change(self, job_id: int, **columns: Any) -> None:
        """Write columns of a job that has not ended, past the port."""

    def position(self, job_id: int) -> int:
        """Where a job that has not ended stands within its priority."""

    async def wait_unlocked(self, session: int) -> None:
        """Return once nobody holds the session's lock."""

    def claims_of(self, session: int) -> dict[int, set[int]]:
        """The claims that the store keeps for a session, alive or not."""

    def sessions(self) -> set[int]:
        """The ids of all sessions that the store knows."""


class MemoryEngine:
    """MemoryStorage on a clock that stands still."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.storage: Storage
        self.storage = self._memory = MemoryStorage(clock=lambda: self.now)

    def runner(
        self, name: str = "runner", *, lease: float = LEASE, queues: tuple[str, ...] = ()
    ) -> Runner:
        control = self.storage.control()
        return Runner(self, control, control.open(name, lease, queues))

    def advance(self, seconds: float) -> None:
        self.now += seconds

    def change(self, job_id: int, **columns: Any) -> None:
        row = self._memory._tables.rows[job_id]
        for name, value in columns.items():
            setattr(row, name, value)

    def position(self, job_id: int) -> int:
        return self._memory._tables.rows[job_id].position

    async def wait_unlocked(self, session: int) -> None:
        pass

    def claims_of(self, session: int) -> dict[int, set[int]]:
        known = self._memory._tables.sessions.get(session)
        return {token: set(held) for token, held in known.claims.items()} if known else {}

    def sessions(self) -> set[int]:
        return set(self._memory._tables.sessions)


class PostgresEngine:
    """PostgresStorage on a pool of its own; `conn` is the test's own hand on the tables."""

    def __init__(
        self, storage: Storage, conn: psycopg.Connection, pool: AsyncConnectionPool[Any]
    ) -> None:
        self.storage = storage
        self.conn = conn
        self.pool = pool
        self.now = 0.0
        self.controls: list[Control] = []

    @classmethod
    @asynccontextmanager
    async def opened(
        cls, url: str, *, conn_url: str = "", **pool_settings: Any
    ) -> AsyncIterator[PostgresEngine]:
        """On a pool to `url`; the test's own connection is to `conn_url`, where that is another one."""
        settings: dict[str, Any] = {"conninfo": url, "min_size": 1, "max_size": 4, "open": False}
        async with AsyncConnectionPool(**settings | pool_settings) as pool:
            with psycopg.connect(conn_url or url, autocommit=True) as conn:
                storage = PostgresStorage(pool, clock=lambda: engine.clock())
                engine = cls(storage, conn, pool)
                await storage.open()
                try:
                    yield engine
                finally:
                    for control in engine.controls:
                        control.abandon()
                    await engine.storage.close()

    def runner(
        self, name: str = "runner", *, lease: float = LEASE, queues: tuple[str, ...] = ()
    ) -> Runner:
        control = self.storage.control()
        self.controls.append(control)
        session = control.open(name, lease, queues)
        self.now += 5  # a new link may judge other sessions' leases after this many seconds
        return Runner(self, control, session)

    def clock(self) -> float:
        """Seconds for hints and patience; a scan must take some, or every other one would be thorough."""
        self.now += 0.01
        return self.now

    async def reset(self) -> None:
        """Forget everything, scan hints too."""
        await self.storage.close()
        for control in self.controls:
            control.abandon()
        self.controls.clear()
        self.conn.execute(
            sql.SQL("TRUNCATE {}").format(
                sql.SQL(", ").join(map(sql.Identifier, [*TIMES, "worker_claims"]))
            )
        )
        self.storage = PostgresStorage(self.pool, clock=self.clock)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for table, columns in TIMES.items():
            shifts = sql.SQL(", ").join(
                sql.SQL("{0} = {0} - %(by)s * interval '1 second'").format(sql.Identifier(column))
                for column in columns
            )
            update = sql.SQL("UPDATE {} SET {}").format(sql.Identifier(table), shifts)
            self.conn.execute(update, {"by": seconds})

    def change(self, job_id: int, **columns: Any) -> None:
        values = sql.SQL(", ").join(
            sql.SQL("{} = {}").format(sql.Identifier(name), sql.Literal(value))
            for name, value in columns.items()
        )
        update = sql.SQL("UPDATE background_jobs SET {} WHERE id = {}").format(
            values, sql.Literal(job_id)
        )
        assert self.conn.execute(update).rowcount == 1

    def position(self, job_id: int) -> int:
        query = "SELECT position FROM background_jobs WHERE id = %s"
        ((position,),) = self.conn.execute(query, [job_id])
        return int(position)

    async def wait_unlocked(self, session: int) -> None:
        # waits for the server to see that the owner of the lock is gone
        self.conn.execute("SELECT pg_advisory_lock(workers_lock_class(), %s::integer)", [session])
        self.conn.execute("SELECT pg_advisory_unlock(workers_lock_class(), %s::integer)", [session])

    async def wait_blocked(self, seconds: float = 0.0) -> None:
        """Return once a statement of this schema has waited so long for a row that another transaction holds."""
        query = (
            "SELECT count(*) FROM pg_locks AS lock JOIN pg_locks AS other ON other.pid = lock.pid"
            " WHERE NOT lock.granted AND lock.waitstart < clock_timestamp() - %s * interval '1 second'"
            " AND other.relation IN ('background_jobs'::regclass, 'worker_sessions'::regclass)"
        )
        with anyio.fail_after(30):
            while self.conn.execute(query, [seconds]).fetchone() == (0,):
                await anyio.lowlevel.checkpoint()

    def claims_of(self, session: int) -> dict[int, set[int]]:
        rows = self.conn.execute(
            "SELECT token, ids FROM worker_claims WHERE session_id = %s", [session]
        )
        return {token: set(held) for token, held in rows}

    def sessions(self) -> set[int]:
        return {row[0] for row in self.conn.execute("SELECT id FROM worker_sessions")}


__all__ = ["Capabilities", "Engine", "MemoryEngine", "PostgresEngine", "Runner"]
