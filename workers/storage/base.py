"""The port between the runtime and an engine: what a job store must be able to do, in the words of the domain.

An engine is two objects and a stream:

* `Storage`, used from the event loop: produce, claim, settle, read.
* `Control`, used from the runner's own thread, and synchronous, since a job that blocks the event loop must not cost the
  runner its lease: the session's life, the sweep over other sessions.
* `Listener`, an optional stream of wake-ups. Without one the runner polls.

Rules every engine keeps (tests/storage proves them): a claim is stamped with a session and a token chosen by the caller;
every later write shows both and changes nothing when they are stale; a session that is not alive claims nothing; scan
order, hints, locks are the engine's business. Errors: `StorageUnavailableError` (try again), `StorageRejectedError` (never).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

import msgspec

from ..job import ClaimedJob, JobRecord, JobState, NewJob
from ..lifecycle import Transition

__all__ = [
    "Capabilities",
    "ClaimRequest",
    "Claimed",
    "Control",
    "DeadSession",
    "Guard",
    "Listener",
    "Maintenance",
    "MaintenanceRequest",
    "QueueStats",
    "Scan",
    "Settled",
    "Settlement",
    "Storage",
    "SyncTransactionalRun",
    "TransactionalRun",
    "Wake",
]


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine can do beyond the minimum."""

    transactional: bool = False
    listener: bool = False
    survives_process: bool = True


class Scan(msgspec.Struct, frozen=True):
    """`thorough`: look at every waiting row, whatever hints the engine keeps (at start, and before "empty" is concluded).
    `suspects`: 0 for ordinary jobs; else those that were claimed when a process died, with at most this many crashes.
    """

    thorough: bool = False
    suspects: int = 0


class ClaimRequest(msgspec.Struct, frozen=True, kw_only=True):
    """Take up to `limit` available jobs of `queue`, of the given types only, for `session` under `token`."""

    session: int
    token: int
    queue: str
    job_types: tuple[str, ...]
    limit: int
    scan: Scan = Scan()


class Claimed(msgspec.Struct, frozen=True):
    """What a claim took, highest priority first, then in order of position. `complete`: the whole queue was looked at, so
    that fewer jobs than the limit means no more; never for a session that is not alive, nor for suspects.
    """

    jobs: Sequence[ClaimedJob]
    complete: bool


class Guard(msgspec.Struct, frozen=True, gc=False):
    """Proof of a claim on one job."""

    id: int
    token: int


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """One job's transition, with the proof that it may be written."""

    guard: Guard
    deduplicated: bool
    transition: Transition


class Settled(msgspec.Struct, frozen=True):
    """`written` ids were changed; `superseded` ones met an identical waiting job on their way back and made way for it.
    An id in neither was fenced: its claim is no longer this session's."""

    written: Collection[int]
    superseded: Collection[int] = ()


class Wake(msgspec.Struct, frozen=True):
    """Jobs became available. An empty `queue` means any; `position` is the lowest of them, for the engine's hints."""

    queue: str = ""
    priority: int = 0
    position: int = 0


class DeadSession(msgspec.Struct, frozen=True):
    """A session whose jobs were given back. `superseded` are those of them that made way for identical ones."""

    session: int
    name: str
    reason: str
    jobs: int
    superseded: tuple[int, ...] = ()


class MaintenanceRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One second's housekeeping. `declared` maps each job type this runner knows to its declared queue."""

    lease: float
    declared: Mapping[str, str]
    queues: Collection[str]
    renew: bool = True


class Maintenance(msgspec.Struct, frozen=True, kw_only=True):
    """What the housekeeping found. `alive`: this session still is. `wakes`: what became available. `suspects`: queues of
    this runner in which jobs that crashed a process wait. `stray`: (job type, queue) pairs of known types that wait in
    queues this runner does not work. `rescue`: some session is dead and still has claims.
    """

    alive: bool
    wakes: Sequence[Wake] = ()
    suspects: Collection[str] = ()
    stray: Collection[tuple[str, str]] = ()
    rescue: bool = False


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """Rows per state in one queue; `oldest` is the age in seconds of the longest available job."""

    queue: str
    scheduled: int = 0
    available: int = 0
    running: int = 0
    retryable: int = 0
    dead: int = 0
    archived: int = 0
    oldest: float = 0.0


class TransactionalRun(Protocol):
    """One attempt of a transactional job inside its transaction."""

    #: The driver's asynchronous connection.
    connection: Any

    async def finish(self, settlement: Settlement) -> None:
        """Write the job's end in its own transaction; the commit follows when the block is left.

        Raises StorageRejectedError when the job left the transaction in error, or ended it.
        """


class SyncTransactionalRun(Protocol):
    """The same in a thread, on a synchronous connection."""

    connection: Any

    def finish(self, settlement: Settlement) -> None: ...


class Storage(Protocol):
    """A job store, used from one event loop."""

    capabilities: Capabilities

    async def open(self) -> None:
        """Get ready; an engine opens what it was not given open. Raises MigrationError when tables are missing."""

    async def close(self) -> None:
        """Close what `open` opened."""

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[int | None]:
        """Write all jobs or none; ids in order, None where an identical deduplicated job waits."""

    async def claim(self, request: ClaimRequest) -> Claimed:
        """Take jobs. Must not be cancelled half-way: shield it."""

    async def complete(
        self, session: int, guards: Sequence[Guard], closed: Collection[int]
    ) -> Collection[int]:
        """Delete finished jobs and forget the `closed` tokens; returns the ids that were deleted."""

    async def settle(
        self, session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        """Write every other transition, and forget the `closed` tokens."""

    async def release_claim(self, session: int, token: int) -> int:
        """Give back whatever stands under `token`: for a claim whose reply was lost. Returns how many jobs."""

    def transaction(
        self, session: int, guard: Guard
    ) -> AbstractAsyncContextManager[TransactionalRun | None]:
        """A transaction that holds the job's row; None when the claim is gone. Rolled back when the block raises."""

    def transaction_sync(
        self, session: int, guard: Guard
    ) -> AbstractContextManager[SyncTransactionalRun | None]:
        """The same for a job that runs in a thread."""

    def noticed(self, wake: Wake) -> None:
        """A wake-up arrived: an engine that keeps scan hints pulls them back."""

    async def stats(self) -> list[QueueStats]:
        """Counts per queue."""

    async def find(self, job_id: int) -> JobRecord | None:
        """One job, wherever it stands."""

    async def list_jobs(
        self, state: JobState, *, limit: int = 100, after: int = 0
    ) -> list[JobRecord]:
        """Jobs in `state` with an id above `after`, in id order."""

    async def failed_jobs(self, limit: int = 10) -> tuple[int, list[int]]:
        """How many jobs failed at least once, dead ones included, and the first ids."""

    async def requeue(self, job_ids: Sequence[int]) -> list[int]:
        """Make dead jobs available again with fresh counters; returns the ids that were dead and now wait."""

    def control(self) -> Control:
        """A new, unopened control link."""

    def listener(self) -> Listener | None:
        """A new, unopened listener, or None where the engine has none."""


class Control(Protocol):
    """The session's own link, used from one thread."""

    def open(self, name: str, lease: float) -> int:
        """Connect and register a new session: first the lock, then the row. Returns its id."""

    def recover(self, lease: float) -> bool:
        """Reconnect under the same session. True: it is alive and keeps its claims. False: it was reaped."""

    def maintain(self, request: MaintenanceRequest) -> Maintenance:
        """One statement: renew the lease, stage due jobs, fill in queues, look for dead sessions."""

    def rescue(self) -> list[DeadSession]:
        """Give back the jobs of dead sessions, each with one more crash."""

    def claims(self) -> Mapping[int, Collection[int]]:
        """The ids under each token of this session, as the store knows them."""

    def probe(self, address: str) -> None:
        """Send a message to a listener: one that does not hear it is deaf."""

    def release(self, guards: Sequence[Guard]) -> int:
        """Give back jobs, uncounted."""

    def close(self) -> int:
        """Give back everything this session holds, remove it and disconnect. Returns how many jobs went back."""

    def wait(self, seconds: float) -> None:
        """Wait at most `seconds`; returns early when poked, and at once when the link breaks: to others a link that stays
        away for a second is a death."""

    def poke(self) -> None:
        """End the wait that is on, or the next one; callable from any thread."""

    def abandon(self) -> None:
        """Disconnect without a word, as a crash would."""


class Listener(Protocol):
    """A stream of wake-ups."""

    #: What `Control.probe` needs to reach this listener; set by `open`.
    address: str

    async def open(self) -> None:
        """Connect and subscribe."""

    def __aiter__(self) -> AsyncIterator[Wake | None]:
        """Wake-ups as they come; None is a probe that arrived."""

    async def close(self) -> None:
        """Disconnect."""
