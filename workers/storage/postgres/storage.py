"""The PostgreSQL engine. What the statements do, and why, stands in queries/*.sql."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from ...errors import MigrationError, StorageRejectedError, StorageUnavailableError
from ...job import ClaimedJob, JobRecord, JobState, NewJob
from ...lifecycle import Archive, Bury, Delete, Release, Retry, Wait
from ..base import (
    Capabilities,
    Claimed,
    ClaimRequest,
    Control,
    Guard,
    Listener,
    QueueStats,
    Settled,
    Settlement,
    SyncTransactionalRun,
    TransactionalRun,
    Wake,
)
from .checkout import AnyPool, Checkout, fetch_on, translated
from .connector import Connector
from .hints import ScanHints, ScanKind
from .listener import PostgresListener
from .session import PostgresControl
from .statements import statement
from .transactions import TransactionConnections

__all__ = ["PostgresStorage"]

_CLAIM = {
    ScanKind.HINTED: statement("claim"),
    ScanKind.TRAILING: statement("claim"),
    ScanKind.THOROUGH: statement("claim_thorough"),
}
_CLAIM_SUSPECTS = statement("claim_suspects")
_COMPLETE, _FORGET = statement("complete"), statement("forget")
_HELD_IDS = statement("held_ids")
_ENQUEUE_BATCH, _ENQUEUE_DEDUPLICATED = (
    statement("enqueue_batch"),
    statement("enqueue_deduplicated"),
)
_STATS, _LIST_JOBS, _FAILED_JOBS, _REQUEUE = map(
    statement, ("stats", "list_jobs", "failed_jobs", "requeue")
)
#: The statement for each kind of transition; `wait_deduplicated` stands in for deduplicated jobs that go back to waiting.
_SETTLE = {name: statement(name) for name in ("wait", "wait_deduplicated", "bury", "archive")}

#: A give-back of deduplicated jobs may have to wait for a transaction that is enqueueing an identical one.
_GIVE_BACK_LOCK_TIMEOUT = "SET LOCAL lock_timeout = '250ms'"


class PostgresStorage:
    """Jobs in PostgreSQL, through a psycopg pool or a DSN.

    An open pool is left open; an unopened one, or one made from a DSN, is opened and closed.
    """

    capabilities = Capabilities(transactional=True, listener=True)

    def __init__(
        self,
        target: AsyncConnectionPool[Any] | str,
        *,
        listen: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if isinstance(target, str):
            target = AsyncConnectionPool(target, min_size=1, max_size=4, open=False, name="workers")
        self._pool: AnyPool = target
        self._checkout = Checkout(self._pool)
        connector = self._connector = Connector(self._pool)
        self._hints: dict[str, ScanHints] = defaultdict(ScanHints)
        self._opened = False
        self._listen = listen
        self._clock = (
            clock  # for scan hints and for patience with other sessions, never for what is stored
        )
        self._transactions = TransactionConnections(connector.connect, connector.connect_async)

    async def open(self) -> None:
        """Open the pool where it is not. Raises MigrationError when the tables are missing."""
        if self._pool.closed:
            with translated():
                await self._pool.open(wait=True)
            self._opened = True
        ((ready,),) = await self._checkout.fetch(
            "SELECT to_regclass('background_jobs') IS NOT NULL", {}
        )
        if not ready:
            raise MigrationError(
                "there is no table background_jobs on the search_path; run `workers migrate` first"
            )

    async def close(self) -> None:
        """Close the pool if `open` opened it."""
        await self._transactions.close()
        if self._opened:
            self._opened = False
            await self._pool.close()

    # ---------------------------------------------------------------------------------------------------------- claiming

    async def claim(self, request: ClaimRequest) -> Claimed:
        """Take jobs; see queries/claim*.sql."""
        params = {
            "session": request.session,
            "token": request.token,
            "queue": request.queue,
            "job_types": list(request.job_types),
            "limit": request.limit,
        }
        if request.scan.suspects:
            rows = await self._checkout.fetch(
                _CLAIM_SUSPECTS, params | {"suspects": request.scan.suspects}
            )
            return Claimed([job for job, _ in _in_order(rows)], complete=False)
        hints, start = self._hints[request.queue], self._clock()
        plan = hints.plan(start, thorough=request.scan.thorough)
        if plan.kind is not ScanKind.THOROUGH:
            params |= {"priorities": plan.priorities, "positions": plan.positions}
        rows = await self._checkout.fetch(_CLAIM[plan.kind], params)
        jobs, now = _in_order(rows), self._clock()
        hints.claimed(plan, jobs, request.limit, now, now - start)
        complete = plan.kind is ScanKind.THOROUGH and len(jobs) < request.limit
        return Claimed([job for job, _ in jobs], complete=complete)

    def noticed(self, wake: Wake) -> None:
        """Pull the hint of the queue back to what became available."""
        hints = self._hints.get(
            wake.queue
        )  # none yet: the first scan of a queue is thorough anyway
        if hints is not None:
            hints.noticed(wake.priority, wake.position)

    async def release_claim(self, session: int, token: int) -> int:
        """Give back whatever stands under `token`."""
        rows = await self._checkout.fetch(_HELD_IDS, {"session": session, "tokens": [token]})
        release = Release()
        settlements = [
            Settlement(Guard(job_id, token), deduplicated, release)
            for job_id, token, deduplicated in rows
        ]
        settled = await self.settle(session, settlements, [token])
        return len(settled.written) + len(settled.superseded)

    # ---------------------------------------------------------------------------------------------------------- outcomes

    async def complete(
        self, session: int, guards: Sequence[Guard], closed: Collection[int]
    ) -> Collection[int]:
        """Delete finished jobs and forget the `closed` tokens."""
        # in id order, so that statements that overlap meet in the same order; the latest claim of an id comes last
        ids, tokens = [], []
        for guard in sorted(guards, key=_guard_key):
            ids.append(guard.id)
            tokens.append(guard.token)
        params = {
            "session": session,
            "ids": _array(ids),
            "tokens": _array(tokens),
            "closed": _array(closed),
        }
        ((written,),) = await self._checkout.fetch(_COMPLETE, params)
        return ids if written is None else written

    async def settle(
        self, session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        """Write retries, releases, archives and deaths, one statement for each kind that occurs."""
        groups: dict[str, list[Settlement]] = {name: [] for name in ("complete", *_SETTLE)}
        for settlement in sorted(settlements, key=lambda item: item.guard.id):
            groups[_statement_for(settlement)].append(settlement)
        rows: list[tuple[Any, ...]] = []
        if finished := groups.pop("complete"):
            deleted = await self.complete(session, [item.guard for item in finished], [])
            rows += [(job_id, True) for job_id in deleted]
        for name, group in groups.items():
            if name == "wait_deduplicated":
                rows += await self._wait_deduplicated(session, group)
            elif group:
                rows += await self._checkout.fetch(
                    _SETTLE[name], _columns(name, group) | {"session": session}
                )
        if closed:
            await self._checkout.fetch(_FORGET, {"session": session, "closed": list(closed)})
        return Settled([row[0] for row in rows if row[1]], [row[0] for row in rows if not row[1]])

    async def _wait_deduplicated(
        self, session: int, group: Sequence[Settlement]
    ) -> list[tuple[Any, ...]]:
        """Together; one by one where one of them has to wait for a transaction that is enqueueing the same job."""
        if not group:
            return []

        async def write(conn: psycopg.AsyncConnection[Any]) -> Sequence[tuple[Any, ...]]:
            async with conn.transaction():
                await conn.execute(_GIVE_BACK_LOCK_TIMEOUT)
                return await fetch_on(conn, sql, params)

        sql, params = (
            _SETTLE["wait_deduplicated"],
            _columns("wait_deduplicated", group) | {"session": session},
        )
        try:
            return list(await self._checkout.run(write))
        except StorageUnavailableError as error:
            if len(group) == 1 or not isinstance(error.__cause__, psycopg.errors.LockNotAvailable):
                raise
        rows, blocked = [], None
        for item in group:
            try:
                rows += await self._wait_deduplicated(session, [item])
            except StorageUnavailableError as error:
                blocked = error
        if blocked is not None:
            raise blocked
        return rows

    def transaction(
        self, session: int, guard: Guard
    ) -> AbstractAsyncContextManager[TransactionalRun | None]:
        """The transaction of one attempt, on a connection of its own."""
        return self._transactions.run(session, guard)

    def transaction_sync(
        self, session: int, guard: Guard
    ) -> AbstractContextManager[SyncTransactionalRun | None]:
        """The same on a synchronous connection, for a job in a thread."""
        return self._transactions.run_sync(session, guard)

    # ----------------------------------------------------------------------------------------------- producing and reading

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[int | None]:
        """Write jobs of any types in one transaction; one statement for each kind of job."""
        groups: dict[tuple[Any, ...], list[int]] = defaultdict(list)
        for index, job in enumerate(jobs):
            kind = (job.deduplicated, job.job_type, job.queue, job.priority, job.run_at, job.delay)
            groups[kind].append(index)
        ids: list[int | None] = [None] * len(jobs)

        async def write(conn: psycopg.AsyncConnection[Any]) -> None:
            async with conn.transaction():
                for (
                    deduplicated,
                    job_type,
                    queue,
                    priority,
                    run_at,
                    delay,
                ), indexes in groups.items():
                    params = {
                        "job_type": job_type,
                        "queue": queue,
                        "priority": priority,
                        "run_at": run_at,
                        "delay": delay,
                    }
                    params["data"] = [jobs[index].data for index in indexes]
                    sql = _ENQUEUE_DEDUPLICATED if deduplicated else _ENQUEUE_BATCH
                    for index, row in zip(indexes, await fetch_on(conn, sql, params), strict=True):
                        ids[index] = row[0]

        if jobs:
            await self._checkout.run(write)
        return ids

    async def stats(self) -> list[QueueStats]:
        """Counts per queue; reads the whole table."""
        rows = await self._checkout.fetch(_STATS, {})
        return [
            QueueStats(**dict(zip(QueueStats.__struct_fields__, row, strict=True))) for row in rows
        ]

    async def find(self, job_id: int) -> JobRecord | None:
        """One job, wherever it stands."""
        found = await self._list(state=None, id=job_id, limit=1, after=-(2**63))
        return found[0] if found else None

    async def list_jobs(
        self, state: JobState, *, limit: int = 100, after: int = 0
    ) -> list[JobRecord]:
        """Jobs in `state` with an id above `after`, in id order."""
        return await self._list(state=state.value, id=None, limit=limit, after=after)

    async def _list(self, **params: Any) -> list[JobRecord]:
        rows = await self._checkout.fetch(_LIST_JOBS, params)
        fields = JobRecord.__struct_fields__
        records = (dict(zip(fields, row, strict=True)) for row in rows)
        return [JobRecord(**record | {"state": JobState(record["state"])}) for record in records]

    async def failed_jobs(self, limit: int = 10) -> tuple[int, list[int]]:
        """How many jobs failed at least once, dead ones included, and the first ids."""
        ((count, ids),) = await self._checkout.fetch(_FAILED_JOBS, {"limit": limit})
        return count, ids

    async def requeue(self, job_ids: Sequence[int]) -> list[int]:
        """Give dead jobs another life; returns the ids that now wait."""
        rows = await self._checkout.fetch(_REQUEUE, {"ids": list(job_ids)})
        return [row[0] for row in rows]

    # -------------------------------------------------------------------------------------------------------- the session

    def control(self) -> Control:
        """The link of the control thread, on a connection of its own."""
        return PostgresControl(self._connector.connect, self._clock)

    def listener(self) -> Listener | None:
        """The LISTEN connection, or None when it was switched off."""
        return PostgresListener(self._connector.connect_async) if self._listen else None


def _in_order(rows: Sequence[tuple[Any, ...]]) -> list[tuple[ClaimedJob, int]]:
    """Jobs with their positions, in claim order: UPDATE ... RETURNING has none."""
    jobs = [(ClaimedJob(*row[:-1]), row[-1]) for row in rows]
    jobs.sort(key=lambda item: (-item[0].priority, item[1]))
    return jobs


def _guard_key(guard: Guard) -> tuple[int, int]:
    return guard.id, guard.token


def _array(values: Iterable[int]) -> str:
    """An array literal: psycopg takes ten times as long to dump a list of integers."""
    return "{" + ",".join(map(str, values)) + "}"


def _statement_for(settlement: Settlement) -> str:
    match settlement.transition:
        case Retry() | Wait() | Release():
            return "wait_deduplicated" if settlement.deduplicated else "wait"
        case Bury():
            return "bury"
        case Archive():
            return "archive"
        case Delete():
            return "complete"
    raise StorageRejectedError(f"no statement for {settlement.transition!r}")


def _columns(name: str, group: Sequence[Settlement]) -> dict[str, list[Any]]:
    """The parameter arrays of a settling statement."""
    columns: dict[str, list[Any]] = {
        "ids": [item.guard.id for item in group],
        "tokens": [item.guard.token for item in group],
    }
    transitions: list[Any] = [item.transition for item in group]
    if name == "bury":
        columns["reasons"] = [transition.reason for transition in transitions]
        columns["errors"] = [transition.error for transition in transitions]
        columns["counted"] = [transition.attempted for transition in transitions]
    elif name == "archive":
        columns["states"] = [transition.state for transition in transitions]
        columns["reasons"] = [transition.reason for transition in transitions]
    else:
        columns["delays"] = [getattr(transition, "delay", None) for transition in transitions]
        columns["errors"] = [getattr(transition, "error", None) for transition in transitions]
        columns["counted"] = [isinstance(transition, Retry) for transition in transitions]
    return columns
