"""What goes over the port between the runtime and an engine: requests, answers, and the proofs that writes show."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import msgspec

from ..job import ClaimedJob
from ..lifecycle import Release, Retry, Transition, Wait

__all__ = [
    "SUSPICION",
    "Capabilities",
    "ClaimRequest",
    "Claimed",
    "DeadSession",
    "Guard",
    "Maintenance",
    "MaintenanceRequest",
    "QueueStats",
    "Scan",
    "Settled",
    "Settlement",
    "Wake",
]

#: A session is dead when its lock was found free twice, so many seconds apart: enough for a healthy runner to take it again
#: on a new connection. While somebody may be dead soon, or is suspected, there are three looks in that time.
SUSPICION = 0.75


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
    that fewer jobs than the limit means no more; never for a session that is not alive, nor for suspects. `more`: to be
    claimed again at once, as there may be some where this claim did not look.
    """

    jobs: Sequence[ClaimedJob]
    complete: bool
    more: bool = False


class Guard(msgspec.Struct, frozen=True, gc=False):
    """Proof of a claim on one job."""

    id: int
    token: int


class Settlement(msgspec.Struct, frozen=True, gc=False):
    """One job's transition, with the proof that it may be written."""

    guard: Guard
    deduplicated: bool
    transition: Transition

    @property
    def may_have_to_wait(self) -> bool:
        """Whether it may meet a transaction that is just enqueueing an identical job."""
        return self.deduplicated and isinstance(self.transition, Retry | Wait | Release)


class Settled(msgspec.Struct, frozen=True):
    """`written` ids were changed; `superseded` ones met an identical waiting job on their way back and made way for it.
    `blocked` ones are as they were: they have to wait for somebody else's transaction, which has locked their rows or is
    just enqueueing an identical job; while there are any, no claim was forgotten. An id in none was fenced: its claim is no
    longer this session's."""

    written: Collection[int]
    superseded: Collection[int] = ()
    blocked: Collection[int] = ()

    @property
    def count(self) -> int:
        """How many are off this session's hands: those that made way are, too."""
        return len(self.written) + len(self.superseded)


class Wake(msgspec.Struct, frozen=True):
    """Jobs became available. An empty `queue` means any; `position` is the lowest of them, for the engine's hints.
    `unheard`: there may have been wake-ups before this one that nobody heard, so that no hint is to be trusted.
    `suspects`: they were claimed when their process died."""

    queue: str = ""
    priority: int = 0
    position: int = 0
    unheard: bool = False
    suspects: bool = False


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
    this runner in which jobs that crashed a process wait. `rescue`: some session is dead and still has claims. `silent`: the
    lock of one is free, or may be soon, as nothing was heard of it for a while; whether it is dead shows `SUSPICION` seconds
    after that was first seen. `more`: as many jobs became available as may in one round, so that there may be others.
    `probed`: the probe was sent.

    For warnings, now and then, as (job type, queue), of jobs that have waited for 10 s: `stray` are known types in queues of
    nobody, `unknown` are types that this runner does not know, in its queues, in those of nobody, or in none ("").
    """

    alive: bool
    wakes: Sequence[Wake] = ()
    suspects: Collection[str] = ()
    stray: Collection[tuple[str, str]] = ()
    unknown: Collection[tuple[str, str]] = ()
    rescue: bool = False
    silent: bool = False
    more: bool = False
    probed: bool = False


class QueueStats(msgspec.Struct, frozen=True, kw_only=True):
    """Rows per state in one queue; `oldest`: seconds since the first of the available ones was enqueued."""

    queue: str
    scheduled: int = 0
    available: int = 0
    running: int = 0
    retryable: int = 0
    dead: int = 0
    archived: int = 0
    oldest: float = 0.0
