"""What the memory engine keeps: jobs, sessions and claims, and the few moves that they make.

Nothing here decides; `Tables.lock` is held by whoever calls.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import count

from ...errors import StorageRejectedError
from ...job import MAX_PRIORITY, MIN_PRIORITY, ClaimedJob, JobState, NewJob
from ..base import Guard, Settled, Wake

__all__ = ["MAX_COUNT", "MAX_CRASHES", "Ended", "Row", "Session", "Tables", "check"]

#: The counters are PostgreSQL's integer and smallint there, so they end where those do.
MAX_COUNT, MAX_CRASHES = 2**31 - 1, 2**15 - 1
_MAX_NAME, _MAX_DELAY = 400, 3.2e9

Listening = Callable[[Wake | str], None]


@dataclass(slots=True)
class Row:
    """A job that has not ended. Times are seconds since the epoch."""

    id: int
    job_type: str
    data: str
    priority: int
    queue: str | None
    deduplicated: bool
    created_at: float
    last_retry: float
    run_at: float | None = None
    position: int = 0
    retries: int = 0
    crashes: int = 0
    session: int | None = None
    token: int = 0
    last_error: str | None = None

    @property
    def state(self) -> JobState:
        if self.session is not None:
            return JobState.RUNNING
        if self.run_at is None:
            return JobState.AVAILABLE
        return JobState.RETRYABLE if self.retries else JobState.SCHEDULED

    @property
    def identity(self) -> tuple[str, str, int]:
        """What makes two jobs identical."""
        return self.job_type, self.data, self.priority

    def claimed(self) -> ClaimedJob:
        """The row as its claim shows it."""
        return ClaimedJob(
            self.id,
            self.job_type,
            self.queue or "",
            self.priority,
            self.data,
            self.retries,
            self.crashes,
            self.deduplicated,
            self.token,
        )


@dataclass(slots=True)
class Ended:
    """A job in the archive or among the dead letters."""

    row: Row
    state: JobState
    reason: str | None
    finished_at: float


@dataclass(slots=True)
class Session:
    """A runner. `locked`: its link is up; `suspect_since`: a sweep found it down."""

    id: int
    name: str
    lease_until: float
    queues: frozenset[str] = frozenset()
    locked: bool = True
    alive: bool = True
    suspect_since: float | None = None
    dead_reason: str = ""
    claims: dict[int, list[int]] = field(default_factory=dict)

    def renew(self, now: float, lease: float) -> None:
        """Renew the lease, once a third of it is gone."""
        if self.lease_until < now + 0.67 * lease:
            self.lease_until = now + lease


class Tables:
    """All rows, under one lock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.lock = threading.RLock()
        self.clock = clock
        self.rows: dict[int, Row] = {}
        self.ended: dict[int, Ended] = {}
        self.sessions: dict[int, Session] = {}
        self.listening: list[Listening] = []
        self.session_ids = count(1)
        self._ids, self._positions = count(1), count(1)
        self._waiting: dict[tuple[str, str, int], int] = {}

    def insert(self, job: NewJob) -> Row | None:
        """Write a job; None where an identical deduplicated one waits."""
        now = self.clock()
        run_at = self.due(job.delay) if job.run_at is None else job.run_at.timestamp()
        row = Row(
            next(self._ids),
            job.job_type,
            _canonical(job.data),
            job.priority,
            job.queue,
            job.deduplicated,
            now,
            now,
        )
        return (
            row if self.wait(row, run_at if run_at is not None and run_at > now else None) else None
        )

    def wait(self, row: Row, run_at: float | None = None, *, interrupted: bool = False) -> bool:
        """Make a row wait, from now or until `run_at`.

        False where an identical one does: then it makes way, and that one takes over its crashes; and, where it was
        `interrupted`, its time, which is now.
        """
        if row.deduplicated and (first := self._waiting.setdefault(row.identity, row.id)) != row.id:
            self.rows.pop(row.id, None)
            twin = self.rows[first]
            twin.crashes = max(twin.crashes, row.crashes)
            if interrupted and twin.run_at is not None:
                self.stage(twin, twin.queue)
                self.announce([twin])
            return False
        row.session, row.token = None, 0
        row.run_at, row.position = run_at, next(self._positions)
        self.rows[row.id] = row
        return True

    def stage(self, row: Row, queue: str | None) -> None:
        """Make a waiting row available, in its queue."""
        row.run_at, row.queue, row.position = None, queue, next(self._positions)

    def claim(self, row: Row, session: int, token: int) -> ClaimedJob:
        """Stamp a row. It no longer stands in the way of an identical one."""
        row.session, row.token = session, token
        if row.deduplicated:
            del self._waiting[row.identity]
        return row.claimed()

    def end(self, row: Row, state: JobState, reason: str | None) -> None:
        """Move a row out."""
        del self.rows[row.id]
        self.ended[row.id] = Ended(row, state, reason, self.clock())

    def owned(self, session: int, guard: Guard) -> Row | None:
        """The row that `guard` proves a claim on."""
        row = self.rows.get(guard.id)
        return (
            row if row is not None and row.session == session and row.token == guard.token else None
        )

    def standing(self, session: Session, tokens: Iterable[int]) -> Iterator[Row]:
        """What is still claimed under `tokens`."""
        for token in tokens:
            for job_id in session.claims.get(token, ()):
                if row := self.owned(session.id, Guard(job_id, token)):
                    yield row

    def give_back(self, rows: Iterable[Row], *, crashed: bool = False) -> Settled:
        """Make claimed rows available again, ordinary ones first."""
        given = sorted(rows, key=lambda row: (row.deduplicated, row.id))
        written: list[int] = []
        superseded: list[int] = []
        for row in given:
            if crashed:
                row.crashes = min(row.crashes + 1, MAX_CRASHES)
            if self.wait(row, interrupted=True):
                written.append(row.id)
                continue
            superseded.append(row.id)
        self.announce(given, suspects=crashed)
        return Settled(written, superseded)

    def forget(self, session: int, tokens: Iterable[int]) -> None:
        """Drop claims."""
        if known := self.sessions.get(session):
            for token in tokens:
                known.claims.pop(token, None)

    def announce(self, rows: Iterable[Row], *, suspects: bool = False) -> list[Wake]:
        """Wake the listeners for those of `rows` that became available; returns what they were told."""
        lowest: dict[tuple[str, int], int] = {}
        for row in rows:
            if row.id in self.rows and row.run_at is None and row.queue is not None:
                key = row.queue, row.priority
                lowest[key] = min(row.position, lowest.get(key, row.position))
        wakes = [
            Wake(queue, priority, position, suspects=suspects)
            for (queue, priority), position in lowest.items()
        ]
        for wake in wakes:
            self.tell(wake)
        return wakes

    def tell(self, message: Wake | str) -> None:
        """Hand a wake-up, or a probe's address, to every listener."""
        for listening in self.listening:
            listening(message)

    def due(self, delay: float | None) -> float | None:
        """When a job that waits `delay` seconds is due; None for now."""
        return self.clock() + min(delay, _MAX_DELAY) if delay is not None and delay > 0 else None


def check(job: NewJob) -> None:
    """Refuse what PostgreSQL's tables would."""
    for name, value in (("job_type", job.job_type), ("queue", job.queue)):
        if value is not None and not 1 <= len(value.encode()) <= _MAX_NAME:
            raise StorageRejectedError(f"{name} must be 1 to {_MAX_NAME} bytes long")
    if not MIN_PRIORITY <= job.priority <= MAX_PRIORITY:
        raise StorageRejectedError(
            f"priority {job.priority} is not between {MIN_PRIORITY} and {MAX_PRIORITY}"
        )
    _canonical(job.data)


def _canonical(text: str) -> str:
    """JSON text in one form, so that equal payloads are equal texts."""
    try:
        data = json.dumps(json.loads(text), sort_keys=True, ensure_ascii=False, allow_nan=False)
        data.encode()
    except (ValueError, RecursionError) as error:
        raise StorageRejectedError(f"the store refuses this data: {error}") from error
    return data
