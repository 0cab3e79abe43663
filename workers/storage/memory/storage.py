"""The memory engine's `Storage`: see `storage.base`, where the meaning of every verb stands."""

from __future__ import annotations

import asyncio
import heapq
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from datetime import UTC, datetime
from typing import NoReturn

from ...errors import StorageRejectedError
from ...job import JobRecord, JobState, NewJob
from ...lifecycle import (
    Archive,
    Bury,
    Delete,
    Release,
    Retry,
    Transition,
    Wait,
    clears_crashes,
)
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
from .session import MemoryControl, MemoryListener
from .tables import MAX_COUNT, Ended, Row, Tables, check

__all__ = ["MemoryStorage"]


class MemoryStorage:
    """Jobs in this process's memory: gone with it, and everything else as on PostgreSQL.

    `clock` gives seconds since the epoch; a test that brings its own can move time.
    """

    capabilities = Capabilities(listener=True, survives_process=False)

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self._tables = Tables(clock)

    async def open(self) -> None:
        """Nothing to open."""

    async def close(self) -> None:
        """Nothing to close; the jobs stay."""

    # ---------------------------------------------------------------------------------------------------------- claiming

    async def claim(self, request: ClaimRequest) -> Claimed:
        """Take jobs."""
        await asyncio.sleep(0)  # as any claim takes a while
        tables, most = self._tables, request.scan.suspects
        with tables.lock:
            session = tables.sessions.get(request.session)
            if session is None or not session.alive:
                return Claimed([], complete=False)
            found = (
                row
                for row in tables.rows.values()
                if row.queue == request.queue
                and row.state is JobState.AVAILABLE
                and row.job_type in request.job_types
                and (0 < row.crashes <= most if most else row.crashes == 0)
            )
            rows = heapq.nsmallest(
                request.limit, found, key=lambda row: (-row.priority, row.position)
            )
            jobs = [tables.claim(row, session.id, request.token) for row in rows]
            if jobs:
                session.claims[request.token] = [job.id for job in jobs]
        return Claimed(jobs, complete=not most and len(jobs) < request.limit)

    def noticed(self, wake: Wake) -> None:
        """There are no hints to pull back."""

    async def release_claim(self, session: int, token: int) -> Settled:
        """Give back whatever stands under `token`. The claim is not forgotten: elsewhere another of its scans may land."""
        tables = self._tables
        with tables.lock:
            known = tables.sessions.get(session)
            return tables.give_back(tables.standing(known, [token]) if known else ())

    # ---------------------------------------------------------------------------------------------------------- outcomes

    async def complete(
        self, session: int, guards: Sequence[Guard], closed: Collection[int]
    ) -> Settled:
        """Delete finished jobs and forget the `closed` tokens."""
        with self._tables.lock:
            deleted = [guard.id for guard in guards if self._tables.owned(session, guard)]
            for job_id in deleted:
                self._tables.rows.pop(job_id, None)
            self._tables.forget(session, closed)
        return Settled(deleted)

    async def settle(
        self, session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        """Write every other transition."""
        written: list[int] = []
        superseded: list[int] = []
        waiting: list[Row] = []
        with self._tables.lock:
            for item in sorted(settlements, key=lambda item: (item.deduplicated, item.guard.id)):
                row = self._tables.owned(session, item.guard)
                if row is not None:
                    kept = self._apply(row, item.transition)
                    (written if kept else superseded).append(row.id)
                    waiting.append(row)
            self._tables.announce(waiting)
            self._tables.forget(session, closed)
        return Settled(written, superseded)

    def _apply(self, row: Row, transition: Transition) -> bool:
        """Write one transition; False when the row was superseded."""
        tables = self._tables
        if isinstance(transition, Retry) or (isinstance(transition, Bury) and transition.attempted):
            row.retries = min(row.retries + 1, MAX_COUNT)
            row.last_retry = tables.clock()
        if clears_crashes(transition):
            row.crashes = 0
        match transition:
            case Retry(delay, error):
                row.last_error = error
                return tables.wait(row, tables.due(delay))
            case Wait(delay, _):
                return tables.wait(row, tables.due(delay))
            case Release():
                return tables.wait(row, interrupted=True)
            case Bury(reason, error):
                row.last_error = row.last_error if error is None else error
                tables.end(row, JobState.DEAD, reason)
            case Archive(state, reason):
                tables.end(row, JobState(state), reason)
            case Delete():
                del tables.rows[row.id]
        return True

    def transaction(
        self, session: int, guard: Guard
    ) -> AbstractAsyncContextManager[TransactionalRun | None]:
        """Not here."""
        _no_transactions()

    def transaction_sync(
        self, session: int, guard: Guard
    ) -> AbstractContextManager[SyncTransactionalRun | None]:
        """Not here."""
        _no_transactions()

    # ----------------------------------------------------------------------------------------------- producing and reading

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[int | None]:
        """Write all jobs or none."""
        for job in jobs:
            check(job)
        with self._tables.lock:
            rows = [self._tables.insert(job) for job in jobs]
            self._tables.announce(row for row in rows if row is not None)
        return [None if row is None else row.id for row in rows]

    async def stats(self) -> list[QueueStats]:
        """Counts per queue."""
        counts: dict[str, dict[str, int]] = defaultdict(lambda: defaultdict(int))
        oldest: dict[str, float] = {}
        with self._tables.lock:
            now = self._tables.clock()
            for row in self._tables.rows.values():
                queue = row.queue or ""
                counts[queue][row.state.value] += 1
                if row.state is JobState.AVAILABLE:
                    oldest[queue] = max(oldest.get(queue, 0.0), now - row.created_at)
            for ended in self._tables.ended.values():
                counts[ended.row.queue or ""][
                    "dead" if ended.state is JobState.DEAD else "archived"
                ] += 1
        return [
            QueueStats(queue=queue, oldest=oldest.get(queue, 0.0), **counts[queue])
            for queue in sorted(counts)
        ]

    async def find(self, job_id: int) -> JobRecord | None:
        """One job, wherever it stands."""
        with self._tables.lock:
            kept = self._tables.rows.get(job_id) or self._tables.ended.get(job_id)
            return _record(kept) if kept is not None else None

    async def list_jobs(
        self, state: JobState, *, limit: int = 100, after: int = 0
    ) -> list[JobRecord]:
        """Jobs in `state` with an id above `after`, in id order."""
        with self._tables.lock:
            everywhere: Iterable[Row | Ended] = (
                *self._tables.rows.values(),
                *self._tables.ended.values(),
            )
            found = [_record(kept) for kept in everywhere if kept.state is state]
        found.sort(key=lambda record: record.id)
        return [record for record in found if record.id > after][:limit]

    async def failed_jobs(self, limit: int = 10) -> tuple[int, list[int]]:
        """How many jobs are dead, or have failed and not succeeded since, and the first ids."""
        with self._tables.lock:
            failed = [row.id for row in self._tables.rows.values() if row.retries]
            failed += [
                job_id
                for job_id, ended in self._tables.ended.items()
                if ended.state is JobState.DEAD
            ]
        return len(failed), sorted(failed)[:limit]

    async def requeue(self, job_ids: Sequence[int]) -> list[int]:
        """Give dead jobs another life; returns the ids that now wait."""
        tables, waiting = self._tables, []
        with tables.lock:
            for job_id in sorted(set(job_ids)):
                ended = tables.ended.get(job_id)
                if ended is not None and ended.state is JobState.DEAD:
                    row = tables.ended.pop(job_id).row
                    row.retries = row.crashes = 0
                    row.last_retry = tables.clock()
                    if tables.wait(row):
                        waiting.append(row)
            tables.announce(waiting)
        return [row.id for row in waiting]

    # -------------------------------------------------------------------------------------------------------- the session

    def control(self) -> Control:
        """A new session's link."""
        return MemoryControl(self._tables)

    def listener(self) -> Listener | None:
        """A stream of wake-ups."""
        return MemoryListener(self._tables)


def _no_transactions() -> NoReturn:
    raise StorageRejectedError(
        "the memory engine has no transactions: run transactional jobs on PostgreSQL"
    )


def _record(kept: Row | Ended) -> JobRecord:
    row = kept.row if isinstance(kept, Ended) else kept
    return JobRecord(
        id=row.id,
        job_type=row.job_type,
        state=kept.state,
        queue=row.queue,
        priority=row.priority,
        data=row.data,
        retries=row.retries,
        crashes=row.crashes,
        created_at=_moment(row.created_at),
        last_retry=_moment(row.last_retry),
        run_at=None if isinstance(kept, Ended) or row.run_at is None else _moment(row.run_at),
        last_error=row.last_error,
        reason=kept.reason if isinstance(kept, Ended) else None,
        finished_at=_moment(kept.finished_at) if isinstance(kept, Ended) else None,
    )


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
