"""What makes a worker process pass the points of `workers.failpoints`, again and again."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from typing import Any, NamedTuple

import msgspec
import psycopg

from tests.helpers.ending_jobs import ENQUEUED, Ending, Enqueueing, Pair, Requeueing
from tests.helpers.fault_jobs import Brief, Effect, EffectInThread, Held, Later, Noise, Unique
from tests.helpers.history import Event, History, by
from tests.helpers.processes import WorkerProcess
from tests.helpers.proxy import proxy_to
from workers.storage.base import ClaimRequest, Scan
from workers.storage.postgres.storage import PostgresStorage

__all__ = [
    "AT_WORK",
    "BEHIND_IT",
    "NOTHING",
    "SOON",
    "Occasions",
    "Relied",
    "Victim",
    "occasions_on",
]

_WORK = "brief,effect,effect_in_thread,ending,unique"
#: Of a type that nobody enqueues.
NOTHING = "blocking"
#: The lease of one that looks after sessions, three times in it; and of one that looks once in it for jobs that it holds
#: without knowing.
SOON, _SOONER = 1.5, 1.0
#: Jobs of a kind that are enqueued at a time, and that are there at least: nobody is to wait in vain for a reason to die.
_STOCK, _FEW = 20, 40
#: Seconds between two occasions of a kind that takes its time.
_PAUSE = 0.5
_CLAIM = "INTO worker_claims"
_DEAD = "the dead one"

_ITS_LINK = """
FROM worker_sessions AS session JOIN pg_locks AS held ON held.objid = session.id AND held.classid = workers_lock_class()::oid
WHERE session.name = %s AND session.alive AND held.locktype = 'advisory' AND held.granted AND held.pid <> pg_backend_pid()
"""
_CUT = f"SELECT pg_terminate_backend(held.pid) {_ITS_LINK}"
_CUT_AND_LOCK = f"""
SELECT pg_terminate_backend(held.pid), pg_advisory_lock(workers_lock_class(), session.id::integer) {_ITS_LINK}
"""
_SESSION = "SELECT id, lease_only FROM worker_sessions WHERE name = %s AND alive"
_REAP = "UPDATE worker_sessions SET alive = false, dead_reason = 'the test says so' WHERE name = %s AND alive"
_AT_WORK_ON = """
SELECT job.id FROM background_jobs AS job JOIN worker_sessions AS session ON session.id = job.session_id
WHERE session.name = %s AND job.job_type = 'brief' ORDER BY job.id
"""
_LATER = (
    "SELECT data->>'key', array_agg(id) FROM background_jobs WHERE job_type = 'later' GROUP BY 1"
)
_FRESH = "SELECT count(*) FROM background_jobs WHERE job_type = %s AND crashes = 0"


class Relied(NamedTuple):
    """One of this pair was enqueued after `at`, and acknowledged: one of them has to run from its beginning to its end."""

    key: int
    at: float


class Occasions:
    """Those of one stage. `ids`: the jobs that were acknowledged. Of a pair one may make way for the other: see `relied`."""

    def __init__(
        self,
        url: str,
        conn: psycopg.Connection[Any],
        history: History,
        chance: random.Random,
        stack: ExitStack,
    ) -> None:
        self.ids: dict[type, list[int | None]] = defaultdict(list)
        self.relied: list[Relied] = []
        self._url = url
        self._conn = conn
        self._history = history
        self._chance = chance
        self._producer = stack.enter_context(psycopg.connect(url))
        self._locker = stack.enter_context(psycopg.connect(url))
        self.proxy = stack.enter_context(proxy_to(url))
        self._loop = stack.enter_context(asyncio.Runner())
        self._storage = PostgresStorage(url, listen=False)
        self._loop.run(self._storage.open())
        stack.callback(lambda: self._loop.run(self._storage.close()))
        self._keys = count(1)
        self._promised: Pair | None = None
        self._promised_id: int | None = None
        self._done: dict[str, float] = {}

    def _is_time(self, what: str, pause: float = float("inf")) -> bool:
        """Whether it was not done yet, or is to be done again."""
        now = time.monotonic()
        if now < self._done.get(what, -float("inf")) + pause:
            return False
        self._done[what] = now
        return True

    def _enqueue(self, kind: Any, jobs: Sequence[Any]) -> None:
        self.ids[kind] += kind.enqueue_batch(self._conn, jobs)

    def _pairs(self, how_many: int) -> list[int]:
        """One of each pair; their keys."""
        keys = [next(self._keys) for _ in range(how_many)]
        self.relied += [Relied(key, time.monotonic()) for key in keys]
        self._enqueue(Pair, [Pair(key=key) for key in keys])
        return keys

    def _promise(self, keys: Sequence[int]) -> None:
        """Enqueue the other one of a pair, in a transaction that stays open: whoever puts the first one back has to wait."""
        self._promised = Pair(key=self._chance.choice(keys))
        self._promised_id = self._promised.enqueue(self._producer)

    def _keep_promise(self) -> None:
        """End that transaction, one way or the other."""
        promised, self._promised = self._promised, None
        if promised is None:
            return
        if self._chance.random() < 0.5:
            self._producer.rollback()
            return
        self.relied.append(Relied(promised.key, time.monotonic()))
        self._producer.commit()
        self.ids[Pair].append(self._promised_id)

    # ----------------------------------------------------------------------------------------------------------- at work

    def work(self, _: WorkerProcess) -> None:
        """There is always something to do."""
        if not self._is_time("work", 0.02):
            return
        for kind in (Brief, Effect, EffectInThread, Ending):
            if self._are_few(kind, _FEW):
                self._enqueue(kind, [kind(key=key, seconds=0.01) for key in range(_STOCK)])
        if self._are_few(Unique, _FEW):  # those with such keys fail once
            self._enqueue(Unique, [Unique(key=7 * next(self._keys)) for _ in range(_STOCK)])

    def end(self, member: WorkerProcess) -> None:
        """It is told to end while it has jobs."""
        self.work(member)
        if self._history.events("start", where=by(member.name)) and self._is_time(member.name):
            member.send(signal.SIGTERM)

    def lose_replies(self, member: WorkerProcess) -> None:
        """The replies of its claims are lost."""
        self.work(member)
        if self._is_time(member.name):
            self.proxy.lose_reply(_CLAIM, times=100, rows=True)

    def lock_rows(self, member: WorkerProcess) -> None:
        """Now one and now another row is locked, of those that it is at."""
        if self._are_few(Brief, _FEW):
            self._enqueue(Brief, [Brief(key=key, seconds=0.01) for key in range(_STOCK)])
        ids = self._conn.execute(_AT_WORK_ON, [member.name]).fetchall()
        if ids and self._is_time(member.name, _PAUSE):
            self._locker.rollback()
            lock = "SELECT FROM background_jobs WHERE id = %s FOR UPDATE SKIP LOCKED"
            self._locker.execute(lock, self._chance.choice(ids))

    def hold_up(self, member: WorkerProcess) -> None:
        """It is told to end while its jobs are deduplicated, and one of them has to wait on its way back."""
        if self._is_time(f"{member.name}'s jobs"):
            self._held = self._pairs(_STOCK)
        begun = self._history.events("start", where=by(member.name))
        if len(begun) >= _STOCK and self._is_time(member.name):
            self._promise(self._held)
            member.send(signal.SIGTERM)

    # --------------------------------------------------------------------------------------------------------- behind it

    def cut(self, member: WorkerProcess) -> None:
        """The connection of its session ends, again and again. It has jobs that go on."""
        self._hold(member)
        if self._conn.execute(_CUT, [member.name]).rowcount:
            self._excuse(member)

    def lock(self, member: WorkerProcess) -> None:
        """The same, and before it comes back somebody else has its lock, for a while."""
        self._hold(member)
        found = self._conn.execute(_SESSION, [member.name]).fetchone()
        if found is not None and found[1]:
            unlock = "SELECT pg_advisory_unlock(workers_lock_class(), %s::integer)"
            self._conn.execute(unlock, [found[0]])
            return
        self._excuse(member)
        with suppress(psycopg.errors.LockNotAvailable), self._conn.transaction():
            self._conn.execute("SET LOCAL lock_timeout = '500ms'")
            self._conn.execute(_CUT_AND_LOCK, [member.name])

    def _excuse(self, member: WorkerProcess) -> None:
        """Where it is back too late its jobs are begun again while it lives, as those of one that was frozen."""
        self._history.add(Event(what="frozen", process=member.name))

    def _hold(self, member: WorkerProcess) -> None:
        if self._is_time(f"{member.name}'s jobs"):
            self._enqueue(Held, [Held(key=key) for key in range(2)])

    def reap(self, member: WorkerProcess) -> None:
        """It is taken for dead, and has to begin a new session."""
        self._conn.execute(_REAP, [member.name])

    def bereave(self, _: WorkerProcess) -> None:
        """Somebody dies who had jobs. Until the next one does, one of them has to wait on its way back: each sweep tries."""
        if not self._is_time("bereave", 2 * _PAUSE):
            return
        control = self._storage.control()
        keys = self._claimed(control.open(_DEAD, 15))
        self._keep_promise()
        self._promise(keys)
        control.abandon()
        self._conn.execute(_REAP, [_DEAD])  # as it would be a second later

    def orphan(self, member: WorkerProcess) -> None:
        """A claim that it has given up lands after all, and another one that it knows of."""
        if not self._is_time(member.name, _PAUSE):
            return
        Noise.enqueue_batch(self._conn, [Noise(key=key) for key in range(_STOCK)])
        if found := self._conn.execute(_SESSION, [member.name]).fetchone():
            self._claimed(found[0])

    def _claimed(self, session: int) -> list[int]:
        """New jobs, and what else waits, are claimed for this session; the keys of the pairs among the new ones."""
        self._enqueue(Brief, [Brief(key=key) for key in range(4)])
        keys = self._pairs(_STOCK)
        request = ClaimRequest(
            session=session,
            token=self._chance.randrange(10**6, 10**9),
            queue="default",
            job_types=("brief", "pair"),
            limit=1000,
            scan=Scan(thorough=True),
        )
        jobs = self._loop.run(self._storage.claim(request)).jobs
        claimed = [msgspec.json.decode(job.data)["key"] for job in jobs if job.job_type == "pair"]
        return [key for key in keys if key in claimed]

    def enqueue(self, _: WorkerProcess) -> None:
        """A job enqueues others."""
        if self._are_few(Enqueueing, 2):
            Enqueueing(url=self._url).enqueue(self._conn)

    def requeue(self, _: WorkerProcess) -> None:
        """A job gives dead ones another life."""
        if self._are_few(Requeueing, 2):
            Requeueing(url=self._url).enqueue(self._conn)

    def _are_few(self, kind: Any, few: int) -> bool:
        """How many are left of those that no process has died of yet: others are not claimed in batches."""
        (number,) = self._conn.execute(_FRESH, [kind.job_name]).fetchone() or (0,)
        return bool(number < few)

    # -------------------------------------------------------------------------------------------------------- afterwards

    def over(self) -> dict[str, int]:
        """Nothing is in the way of anybody any more. Returns the batches that were enqueued by halves: none."""
        self._keep_promise()
        self._locker.rollback()
        self._conn.execute("SELECT pg_advisory_unlock_all()")
        kinds = [Enqueueing.job_name, Requeueing.job_name]
        self._conn.execute("DELETE FROM background_jobs WHERE job_type = ANY(%s)", [kinds])
        batches = dict(self._conn.execute(_LATER).fetchall())
        for ids in batches.values():
            self.ids[Later] += ids
        return {key: len(ids) for key, ids in batches.items() if len(ids) != ENQUEUED}


@contextmanager
def occasions_on(
    url: str, conn: psycopg.Connection[Any], history: History, chance: random.Random
) -> Iterator[Occasions]:
    """Those of a stage."""
    with ExitStack() as stack:
        yield Occasions(url, conn, history, chance, stack)


@dataclass(frozen=True, slots=True)
class Victim:
    """A process that is to die at a point: what it does, and what is done to it as long as it lives. `once`: in its life it
    passes that point no more than once."""

    occasion: Callable[[Occasions, WorkerProcess], None] = Occasions.work
    types: str = _WORK
    workers: int = 4
    lease: float = 15.0
    grace: float = 30.0
    once: bool = False
    proxied: bool = False


_WORKER = Victim()
_ENDING = Victim(Occasions.end, once=True)
_CUT_OFF = Victim(Occasions.cut, "held", 2, SOON)
_REAPED = Victim(Occasions.reap, NOTHING, 1, SOON)
_RESCUER = Victim(Occasions.bereave, NOTHING, 1, SOON)
_UNKNOWING = Victim(Occasions.orphan, "noise", 1, _SOONER)
_ENQUEUEING = Victim(Occasions.enqueue, "enqueueing", 1)

#: The points that a runner passes by what it does with its jobs.
AT_WORK = {
    "claim": _WORKER,
    "scanned": _WORKER,
    "claimed": _WORKER,
    "claim given back": Victim(Occasions.lose_replies, proxied=True),
    "complete": _WORKER,
    "completed in part": Victim(Occasions.lock_rows, "brief"),
    "completed": _WORKER,
    "settle": _WORKER,
    "settled archive": _WORKER,
    "settled bury": _WORKER,
    "settled wait": _WORKER,
    "settled wait_deduplicated": _WORKER,
    "settled alone": Victim(Occasions.hold_up, "pair", _STOCK, grace=0),
    "settled": _WORKER,
    "transaction begun": _WORKER,
    "transaction worked": _WORKER,
    "transaction written": _WORKER,
    "transaction committed": _WORKER,
    "maintain": _WORKER,
    "maintained": _WORKER,
    "release": _ENDING,
    "release written": _ENDING,
    "released": _ENDING,
}
#: Those that it passes besides, for its session, for those of others, and in what jobs do with the engine.
BEHIND_IT = {
    "session locked": _REAPED,
    "session opened": _REAPED,
    "recover": _CUT_OFF,
    "lock retaken": _CUT_OFF,
    "recovered": _CUT_OFF,
    "lock taken late": Victim(Occasions.lock, "held", 2, SOON),
    "rescue": _RESCUER,
    "rescued": _RESCUER,
    "given back in part": _RESCUER,
    "rescued all": _RESCUER,
    "claims buried": _RESCUER,
    "removal written": _RESCUER,
    "sessions removed": _RESCUER,
    "give back": _UNKNOWING,
    "given back": _UNKNOWING,
    "given back all": _UNKNOWING,
    "claims ended": _UNKNOWING,
    "enqueue written": _ENQUEUEING,
    "enqueued": _ENQUEUEING,
    "requeued": Victim(Occasions.requeue, "requeueing", 1),
}
