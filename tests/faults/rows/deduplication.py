"""Rows 13c and 14: deduplicated jobs, raced for by many, and relied on by transactions that are still open."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.helpers.fault_jobs import Brief, Seeing
from tests.helpers.history import Event, History
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.runners import eventually, left

__all__ = ["last_starts"]

_PATIENCE = 120.0
_KEYS = 1000
#: Identical jobs of which more than one waits.
_LIVE = """
SELECT data FROM background_jobs WHERE job_type = 'unique' AND session_id IS NULL GROUP BY data HAVING count(*) > 1
"""


@row(
    "14",
    "deduplication race",
    "8 to 32 enqueuers, one by one and in overlapping batches, 1,000 keys, beside workers: identical waiting jobs 0, after "
    "each enqueue its key runs, each id runs once or made way for an identical one",
)
def race(bench: Bench) -> Found:
    crowds = bench.pick(full=(8, 16, 32), quick=(8, 32), tiny=(8,))
    turns, keys = bench.pick(full=(10_000, _KEYS), quick=(1_600, _KEYS), tiny=(400, 100))
    found = Found(injected=0, jobs=0)
    for crowd in crowds:
        with bench.stage() as (_, conn, history, workers):
            members = [workers.start("unique") for _ in range(2)]
            options = {"plan": "race", "keys": keys, "turns": turns // crowd}
            asking = [workers.start_producer("unique", **options) for _ in range(crowd)]
            _watch(found, conn, asking)
            for producer in asking:
                found.expect(producer.wait() == 0, f"{producer.name} did not end well")
            _drained(found, conn, workers)
            _judge(found, history)
            for member in members:
                found.expect(member.wait() == 0, "a worker did not end well")
    return found


def _watch(found: Found, conn: psycopg.Connection[Any], asking: list[WorkerProcess]) -> None:
    """Look for identical waiting jobs, as long as anybody enqueues."""
    pause = threading.Event()
    while True:
        last = not any(producer.alive for producer in asking)
        if alike := conn.execute(_LIVE).fetchall():
            found.expect(False, f"identical jobs wait: {alike[:10]}")
            return
        if last:
            return
        pause.wait(0.005)


def _drained(found: Found, conn: psycopg.Connection[Any], workers: Crew) -> None:
    """Wait until everything is done, and tell the workers to end."""
    eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
    for member in workers.members:
        member.ready()
        member.send(signal.SIGTERM)
        found.expect(member.wait() == 0, "a worker did not end well")
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")


def _judge(found: Found, history: History) -> None:
    events = history.events()
    gave_way = {event.job for event in events if event.what == "superseded"}
    found.judge(history.check(explained=gave_way))
    told = history.events("ok", "waits")
    found.expect(
        any(answer.what == "waits" for answer in told), "nobody found an identical job waiting"
    )
    last = last_starts(events)
    missed = [answer for answer in told if last.get(answer.text, 0.0) < answer.since]
    found.lost += len(missed)
    found.expect(not missed, f"lost, as nothing ran for them afterwards: {missed[:10]}")
    keys = {answer.job: int(answer.text) for answer in told if answer.what == "ok"}
    starts = Counter(event.job for event in events if event.what == "start")
    twice = [job for job, key in keys.items() if starts[job] > (2 if key % 7 == 0 else 1)]
    found.expect(not twice, f"run more often than they should: {twice[:10]}")
    found.injected += len(told)
    found.jobs += len(keys)


def last_starts(events: list[Event]) -> dict[str, float]:
    """For each text, the latest start of a run that came to its end."""
    begun = {(event.job, event.token): event for event in events if event.what == "start"}
    last: dict[str, float] = defaultdict(float)
    for event in events:
        if event.what == "end":
            start = begun[event.job, event.token]
            last[start.text] = max(last[start.text], start.at)
    return last


class _Relied(NamedTuple):
    """What a transaction that changed something relies on: `job` waits, and has to see `value` after `ended`."""

    job: int | None
    value: str
    ended: float


@row(
    "13c",
    "deduplication against an open transaction",
    "change + enqueue -> None in a transaction that stays open while workers pass that job by, then COMMIT or ROLLBACK: the "
    "job runs once, afterwards, and sees the change",
)
def relied_on(bench: Bench) -> Found:
    rounds, producers = bench.pick(full=250, quick=20, tiny=3), 4
    found = Found(injected=0, jobs=0)
    with bench.stage() as (url, conn, history, workers):
        conn.execute("CREATE TABLE setting (key integer PRIMARY KEY, value text NOT NULL)")
        for _ in range(2):
            workers.start("seeing,brief", workers=4).ready()
        relying = [_Producer(url, history, key, bench.chance.random()) for key in range(producers)]
        with ThreadPoolExecutor(producers) as pool:
            for future in [pool.submit(each.work, rounds) for each in relying]:
                future.result()
        _drained(found, conn, workers)
        events = history.events()
        found.judge(history.check([job for each in relying for job in each.enqueued]))
        seen: dict[int, list[Event]] = defaultdict(list)
        for event in events:
            if event.what == "start":
                seen[event.job].append(event)
        for job, value, ended in (relied for each in relying for relied in each.relied):
            runs = seen[job or 0]
            good = [run.text for run in runs] == [value] and runs[0].at >= ended
            found.expect(good, f"job {job} was to see {value!r}, not before {ended}: {runs}")
            found.injected += 1
        found.jobs += len(seen)
        least = bench.pick(full=0.5, quick=0.5, tiny=0.1)  # of a few, few may
        found.expect(
            found.injected > rounds * producers * least,
            f"only {found.injected} of {rounds * producers} found an identical job waiting",
        )
    return found


class _Producer:
    """Changes its row of `setting`, round after round, and enqueues a job that is to see the change."""

    def __init__(self, url: str, history: History, key: int, seed: float) -> None:
        self._url = url
        self._history = history
        self._chance = random.Random(seed)
        self._key = key
        self._value = "0"
        self.relied: list[_Relied] = []
        self.enqueued: list[int | None] = []

    def work(self, rounds: int) -> None:
        """All rounds."""
        with psycopg.connect(self._url, autocommit=True) as conn, psycopg.connect(self._url) as own:
            conn.execute("INSERT INTO setting VALUES (%s, %s)", [self._key, self._value])
            for number in range(1, rounds + 1):
                self._round(conn, own, str(number))

    def _round(self, conn: Any, own: psycopg.Connection[Any], value: str) -> None:
        own.execute("UPDATE setting SET value = %s WHERE key = %s", [value, self._key])
        if self._chance.random() < 0.75:
            first, second = self._at_once(conn, own)
        else:  # it is due while the transaction is open
            first = Seeing(key=self._key).enqueue(conn, delay=0.01)
            second = Seeing(key=self._key).enqueue(own)
        for _ in range(2):  # the workers look, and take what comes after that job
            self._ended(Brief(key=self._key).enqueue(conn))
        ended = time.monotonic()
        if self._chance.random() < 0.7:
            own.commit()
            self._value = value
        else:
            own.rollback()
            second = second and 0  # never there
        if second is None:
            self.relied.append(_Relied(first, self._value, ended))
        self._ended(first)
        if second:
            self._ended(second)

    def _at_once(self, conn: Any, own: psycopg.Connection[Any]) -> tuple[int | None, int | None]:
        """Ids of two identical jobs. The second is asked for before the first is there, and its transaction and the workers
        are told of that at the same time."""
        waits = "SELECT FROM pg_stat_activity WHERE pid = %s AND wait_event_type = 'Lock'"
        with ThreadPoolExecutor(1) as pool:
            with conn.transaction():
                first = Seeing(key=self._key).enqueue(conn)
                second = pool.submit(Seeing(key=self._key).enqueue, own)
                eventually(lambda: conn.execute(waits, [own.info.backend_pid]).fetchall())
            return first, second.result()

    def _ended(self, job: int | None) -> None:
        """Wait until a job that was enqueued has ended."""
        self.enqueued.append(job)
        self._history.wait_for("end", where=lambda event: event.job == job)
