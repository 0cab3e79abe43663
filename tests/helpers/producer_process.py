"""A producer in a process of its own (see tests/helpers/nursery.py, which starts it).

Writes events to standard output (see tests/helpers/history.py). What it enqueues is one of PLANS. It ends when it is through
with that, or when it reads `stop` on standard input.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import threading
import time
from typing import Any

import psycopg

from tests.helpers.fault_jobs import job_types
from tests.helpers.history import Event, Kind

#: Seconds until it looks again whether there is room, or a server.
_PAUSE = 0.02
_BATCH = 5
#: How often, and for how many seconds at most, a transaction stays open once its jobs are written.
_OPEN_SHARE, _OPEN_SECONDS = 0.1, 0.05
_WAITING = "SELECT count(*) FROM background_jobs WHERE session_id IS NULL"


def main(arguments: list[str]) -> None:
    """Enqueue."""
    options = _options(arguments)
    producer = PLANS[options.plan](options)
    threading.Thread(target=_obey, args=(producer.stopping,), daemon=True).start()
    producer.run()


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Enqueue test jobs in a process of its own.")
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--types", required=True, help="job types, separated by commas")
    parser.add_argument("--seed", type=float, required=True, help="of its choices")
    parser.add_argument("--plan", choices=list(PLANS), default="stream")
    parser.add_argument("--stock", type=int, default=60, help="stream: how many may wait")
    parser.add_argument("--seconds", type=float, default=0.0, help="stream: that each job takes")
    parser.add_argument("--turns", type=int, default=0, help="race, serializable: how often")
    parser.add_argument("--keys", type=int, default=0, help="race, serializable: of how many")
    return parser.parse_args(arguments)


class Producer:
    """Writes down what it is about to do, and what it was told of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.stopping = threading.Event()
        self.options = options
        self.kinds: list[Any] = job_types(options.types)
        self.chance = random.Random(options.seed)

    def run(self) -> None:
        """Enqueue. Raises what a fault does not explain."""
        raise NotImplementedError

    def note(self, what: Kind, *, job: int = 0, since: float = 0.0, text: str = "") -> None:
        """One write a line: whole, or not at all, whenever the process dies."""
        event = Event(what=what, process=self.options.name, job=job, since=since, text=text)
        os.write(1, event.line())


class Stream(Producer):
    """Small batches of each kind in turn, while fewer than `stock` jobs wait, whatever becomes of the server."""

    def run(self) -> None:
        while not self.stopping.is_set():
            try:
                with psycopg.connect(self.options.database_url, connect_timeout=5) as conn:
                    self._enqueue(conn)
            except (
                psycopg.OperationalError,
                psycopg.errors.IdleInTransactionSessionTimeout,
            ) as error:
                self.note("fail", text=str(error))
                self.stopping.wait(_PAUSE)

    def _enqueue(self, conn: psycopg.Connection[Any]) -> None:
        while not self.stopping.is_set():
            for kind in self.kinds:
                self._batch(conn, kind)
            while self._waiting(conn) >= self.options.stock and not self.stopping.wait(_PAUSE):
                pass

    def _batch(self, conn: psycopg.Connection[Any], kind: Any) -> None:
        jobs = [kind(key=key, seconds=self.options.seconds) for key in range(_BATCH)]
        self.note("invoke", text=kind.job_name)
        ids: list[int] = kind.enqueue_batch(conn, jobs)
        for job in ids:
            self.note("unknown", job=job, text=kind.job_name)
        if self.chance.random() < _OPEN_SHARE:
            self.stopping.wait(self.chance.uniform(0.0, _OPEN_SECONDS))
        sent = time.monotonic()
        conn.commit()
        for job in ids:
            self.note("ok", job=job, since=sent, text=kind.job_name)

    def _waiting(self, conn: psycopg.Connection[Any]) -> int:
        (count,) = conn.execute(_WAITING).fetchone() or (0,)
        conn.commit()
        return int(count)


class Race(Producer):
    """Deduplicated jobs, now one, now some; the text of an answer is the job's key."""

    def run(self) -> None:
        (kind,), keys = self.kinds, range(self.options.keys)
        with psycopg.connect(self.options.database_url, autocommit=True) as conn:
            for _ in range(self.options.turns):
                jobs = [
                    kind(key=key)
                    for key in self.chance.sample(keys, self.chance.choice((1, 1, 1, 20)))
                ]
                self.note("invoke", text=",".join(str(job.key) for job in jobs))
                asked = time.monotonic()
                one = len(jobs) == 1
                ids = [jobs[0].enqueue(conn)] if one else kind.enqueue_batch(conn, jobs)
                for job, job_id in zip(jobs, ids, strict=True):
                    what: Kind = "waits" if job_id is None else "ok"
                    self.note(what, job=job_id or 0, since=asked, text=str(job.key))


class Serializable(Producer):
    """Transactions that read what the others write, repeated when they are refused; an answer's text is type and key."""

    def run(self) -> None:
        with psycopg.connect(self.options.database_url) as conn:
            for number in range(self.options.turns):
                keys = [self.chance.randrange(self.options.keys) for _ in range(2 * _BATCH)]
                kind = self.kinds[number % len(self.kinds)]
                alone, batch = keys[:1], keys[1:]
                # two statements with deduplicated jobs could deadlock with those of another transaction
                parts = [(alone, []), ([], batch)] if kind.deduplicated else [(alone, batch)]
                for part in parts:
                    while not self._enqueued(conn, kind, *part):
                        pass

    def _enqueued(
        self, conn: psycopg.Connection[Any], kind: Any, alone: list[int], batch: list[int]
    ) -> bool:
        self.note("invoke", text=kind.job_name)
        asked = time.monotonic()
        try:
            with conn.transaction():
                conn.execute("SELECT count(*) FROM background_jobs WHERE priority = 7")
                ids = kind.enqueue_batch(conn, [kind(key=key) for key in batch])
                ids += [kind(key=key).enqueue(conn) for key in alone]
        except psycopg.errors.SerializationFailure as error:
            self.note("fail", text=str(error))
            return False
        for job, key in zip(ids, batch + alone, strict=True):
            what: Kind = "waits" if job is None else "ok"
            self.note(what, job=job or 0, since=asked, text=f"{kind.job_name} {key}")
        return True


PLANS = {"stream": Stream, "race": Race, "serializable": Serializable}


def _obey(stopping: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            stopping.set()
    if not stopping.is_set():  # whoever started it is gone
        os._exit(9)
