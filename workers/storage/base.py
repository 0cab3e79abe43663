"""The port between the runtime and an engine: what a job store must be able to do, in the words of the domain.

An engine is two objects and a stream:

* `Storage`, used from the event loop: produce, claim, settle, read.
* `Control`, used from the runner's own thread, and synchronous, since a job that blocks the event loop must not cost the
  runner its lease: the session's life, the sweep over other sessions.
* `Listener`, an optional stream of wake-ups. Without one the runner polls.

Rules every engine keeps (tests/storage proves them): a claim is stamped with a session and a token chosen by the caller;
every later write shows both and changes nothing when they are stale; a session that is not alive claims nothing; scan
order, hints, locks are the engine's business. Errors: `StorageUnavailableError` (try again), `StorageRejectedError` (never),
`StorageUnusableError` (not before somebody has mended the store).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from typing import Any, Protocol

from ..job import JobRecord, JobState, NewJob
from .messages import (
    SUSPICION,
    Capabilities,
    Claimed,
    ClaimRequest,
    DeadSession,
    Guard,
    Maintenance,
    MaintenanceRequest,
    QueueStats,
    Scan,
    Settled,
    Settlement,
    Wake,
)

__all__ = [
    "SUSPICION",
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
    ) -> Settled:
        """Delete finished jobs and forget the `closed` tokens. What has to wait is left as it is."""

    async def settle(
        self, session: int, settlements: Sequence[Settlement], closed: Collection[int]
    ) -> Settled:
        """Write every other transition, and forget the `closed` tokens. What has to wait is left as it is."""

    async def release_claim(self, session: int, token: int) -> Settled:
        """Give back whatever stands under `token`: for a claim whose reply was lost."""

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
        """How many jobs are dead, or have failed and not succeeded since, and the first ids."""

    async def requeue(self, job_ids: Sequence[int]) -> list[int]:
        """Make dead jobs available again with fresh counters; returns the ids that were dead and now wait, in their order.

        A deduplicated one makes way where an identical job waits, and stays dead where one is just being enqueued by a
        transaction that is open.
        """

    def control(self) -> Control:
        """A new, unopened control link."""

    def listener(self) -> Listener | None:
        """A new, unopened listener, or None where the engine has none."""


class Control(Protocol):
    """The session's own link, used from one thread."""

    def open(self, name: str, lease: float, queues: Collection[str] = ()) -> int:
        """Connect and register a new session: first the lock, then the row. Returns its id."""

    def recover(self, lease: float) -> bool:
        """Reconnect under the same session. True: it is alive and keeps its claims. False: it was reaped."""

    def maintain(self, request: MaintenanceRequest, *, probe: str | None = None) -> Maintenance:
        """Renew the lease, so that two thirds of it are left; stage due jobs, fill in queues, look for dead sessions.

        `probe`: send a message to the listener of that address; one that does not hear it is deaf.
        """

    def rescue(self) -> list[DeadSession]:
        """Give back the jobs of dead sessions, each with one more crash."""

    def claims(self) -> Mapping[int, Collection[int]]:
        """The ids under each token of this session, as the store knows them."""

    def release(self, guards: Sequence[Guard]) -> Settled:
        """Give back jobs, uncounted."""

    def close(self) -> Settled:
        """Give back everything this session holds, remove it and disconnect. Returns what went back."""

    def wait(self, seconds: float) -> None:
        """Wait at most `seconds`; returns early when poked, and at once when the link breaks: to others a link that stays
        away for `SUSPICION` is a death."""

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

    async def listen(self, heard: Callable[[Wake | None], None]) -> None:
        """Tell `heard` of wake-ups as they come; None is a probe that arrived. Raises when there will be no more; returns
        when closed."""

    async def close(self) -> None:
        """Disconnect."""
