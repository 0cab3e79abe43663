"""What was asked for, against what the database says became of it.

The database is the witness, not the processes, as those may be killed before they report. A completed job is a row in
archived_jobs: the statement that removes the job writes it. So a job counts once, however often it ran.

A deduplicated job that is given back while an identical one waits makes way for it. That is no loss, as the other one does
the same. It counts as deduplicated, provided that an identical job was started after this one had been asked for, or waits.

Rescues are counted as the runners tell of them: the row forgets those before an attempt that failed, so whoever starts a job
says how many there were since the last such one.

Pick-up latency is the time from the COMMIT that made a job visible to the start of its first attempt. Both are read from
the monotonic clock of this machine, which all processes share. The time just before the COMMIT is used, so nothing is left
out of it. Later attempts are due at a time that the database chose, and are not counted.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from .game import QUEUES, GameJob, GymBattle
from .messages import Message, Started

__all__ = ["Accounts", "Enqueued", "Fate", "Ledger", "QueueAccount"]

Enqueued = tuple[GameJob, int | None]


class Fate(NamedTuple):
    """What became of a job: completed, dead, or waiting (which includes running)."""

    id: int
    queue: str
    fate: str
    retries: int
    crashes: int


class QueueAccount(msgspec.Struct, kw_only=True):
    """The figures of one queue. enqueued = completed + dead + lost + waiting; a job that was rescued twice counts twice."""

    enqueued: int = 0
    deduplicated: int = 0
    completed: int = 0
    retried: int = 0
    dead: int = 0
    lost: int = 0
    waiting: int = 0
    rescued: int = 0
    per_second: float = 0.0
    pickup_p50_ms: float | None = None
    pickup_p99_ms: float | None = None


@dataclass(slots=True, kw_only=True)
class Accounts:
    """The result of a run. The lists of ids are empty when all is well."""

    queues: dict[str, QueueAccount]
    lost: list[int] = field(default_factory=list)
    #: Jobs whose transaction was rolled back, and that are there all the same.
    ghosts: list[int] = field(default_factory=list)
    #: Battles that are completed without exactly one badge, or have a badge without being completed.
    misjudged: list[int] = field(default_factory=list)

    @property
    def honest(self) -> bool:
        """Whether the library did what it promises."""
        return not (self.lost or self.ghosts or self.misjudged)


class Ledger:
    """Notes what the producer and the runners tell."""

    def __init__(self) -> None:
        self._jobs: dict[int, GameJob] = {}
        self._due: dict[int, float] = {}
        self._first_start: dict[int, float] = {}
        self._last_start: dict[int, float] = {}
        self._rolled_back: set[int] = set()
        #: How often a job was rescued between two failures: by its id, and how often it had failed by then.
        self._rescues: dict[tuple[int, int], int] = {}
        self.deduplicated: Counter[str] = Counter()
        self.enqueued: Counter[str] = Counter()

    def committed(self, enqueued: Iterable[Enqueued], due: float) -> None:
        """Note what a transaction enqueued that was begun to commit at `due`."""
        for job, job_id in enqueued:
            if job_id is None:
                self.deduplicated[job.queue] += 1
            else:
                self.enqueued[job.queue] += 1
                self._jobs[job_id] = job
                self._due[job_id] = due

    def rolled_back(self, enqueued: Iterable[Enqueued]) -> None:
        """Note what must not exist."""
        self._rolled_back.update(job_id for _, job_id in enqueued if job_id is not None)

    def hear(self, message: Message) -> None:
        """Note when each job was started, and whether it had been rescued."""
        if isinstance(message, Started):
            self._first_start.setdefault(message.job, message.at)
            self._last_start[message.job] = message.at
            self._note_rescues(message.job, message.retries, message.crashes)

    def rescued(self) -> Counter[str]:
        """Return how often jobs of each queue were rescued, as far as it is known."""
        rescued: Counter[str] = Counter()
        for (job_id, _), times in self._rescues.items():
            if job_id in self._jobs:  # else its commit is not reported yet
                rescued[self._jobs[job_id].queue] += times
        return rescued

    def settle(self, fates: Iterable[Fate], badges: Iterable[int], seconds: float) -> Accounts:
        """Return the accounts of a run of `seconds`. `badges`: a job's id for each badge it won."""
        found = {fate.id: fate for fate in fates}
        missing = self._jobs.keys() - found.keys()
        superseded = self._superseded(missing, found)
        accounts = Accounts(
            queues={queue: QueueAccount() for queue in QUEUES},
            lost=sorted(missing - superseded),
            ghosts=sorted(self._rolled_back & found.keys()),
            misjudged=self._misjudged(found, Counter(badges)),
        )
        for queue, number in self.deduplicated.items():
            accounts.queues[queue].deduplicated = number
        for job_id, job in self._jobs.items():
            account = accounts.queues[job.queue]
            if job_id in superseded:
                account.deduplicated += 1
            else:
                self._count(account, job_id, job, found.get(job_id))
        for queue, number in self.rescued().items():
            accounts.queues[queue].rescued = number
        for account in accounts.queues.values():
            account.per_second = round(account.completed / seconds, 1)
        self._measure_pickup(accounts)
        return accounts

    def _count(self, account: QueueAccount, job_id: int, job: GameJob, fate: Fate | None) -> None:
        account.enqueued += 1
        if fate is None:
            account.lost += 1
            return
        account.completed += fate.fate == "completed"
        account.dead += fate.fate == "dead"
        account.waiting += fate.fate == "waiting"
        # the failure that made it a dead letter was not retried, unless what ended it was a crash
        final_failure = fate.fate == "dead" and fate.crashes < job.max_crashes
        account.retried += fate.retries - final_failure
        # those after which nobody has started it
        self._note_rescues(job_id, fate.retries - final_failure, fate.crashes)

    def _note_rescues(self, job_id: int, retries: int, times: int) -> None:
        if times:
            before = self._rescues.get((job_id, retries), 0)
            self._rescues[job_id, retries] = max(before, times)

    def _superseded(self, missing: set[int], found: dict[int, Fate]) -> set[int]:
        """The ids in `missing` that made way for an identical job."""
        deduplicated = {job_id for job_id in missing if self._jobs[job_id].deduplicated}
        if not deduplicated:
            return deduplicated
        done: dict[str, float] = {}  # until when what was asked for has been done, or will be
        for job_id in found.keys() & self._jobs.keys():
            waits = found[job_id].fate == "waiting"
            started = math.inf if waits else self._last_start.get(job_id, 0.0)
            key = repr(self._jobs[job_id])
            done[key] = max(done.get(key, 0.0), started)
        return {
            job_id
            for job_id in deduplicated
            if done.get(repr(self._jobs[job_id]), 0.0) > self._due[job_id]
        }

    def _misjudged(self, found: dict[int, Fate], badges: Counter[int]) -> list[int]:
        return sorted(
            job_id
            for job_id, job in self._jobs.items()
            if isinstance(job, GymBattle)
            and badges[job_id] != (job_id in found and found[job_id].fate == "completed")
        )

    def _measure_pickup(self, accounts: Accounts) -> None:
        latencies: defaultdict[str, list[float]] = defaultdict(list)
        for job_id in self._first_start.keys() & self._due.keys():
            # a job may start before the commit has been reported to whoever made it
            latency = max(0.0, self._first_start[job_id] - self._due[job_id])
            latencies[self._jobs[job_id].queue].append(latency)
        for queue, measured in latencies.items():
            measured.sort()
            accounts.queues[queue].pickup_p50_ms = percentile(measured, 0.50)
            accounts.queues[queue].pickup_p99_ms = percentile(measured, 0.99)


def percentile(ordered: list[float], share: float) -> float:
    """Return the value in milliseconds that `share` of the ordered seconds do not exceed."""
    return round(1000 * ordered[math.ceil(share * len(ordered)) - 1], 1)
