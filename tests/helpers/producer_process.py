"""A producer in a process of its own, to be hurt (see tests/helpers/nursery.py, which starts it).

Enqueues small batches of jobs, of each kind in turn, while fewer than `--stock` wait, whatever becomes of the server. Writes
events to standard output (see tests/helpers/history.py), and ends when it reads `stop` on standard input.
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
from tests.helpers.history import Event

#: Seconds until it looks again whether there is room, or a server.
_PAUSE = 0.02
_BATCH = 5
#: How often, and for how many seconds at most, a transaction stays open once its jobs are written.
_OPEN_SHARE, _OPEN_SECONDS = 0.1, 0.05
_WAITING = "SELECT count(*) FROM background_jobs WHERE session_id IS NULL"


def main(arguments: list[str]) -> None:
    """Enqueue until told to stop."""
    producer = _Producer(_options(arguments))
    threading.Thread(target=_obey, args=(producer.stopping,), daemon=True).start()
    producer.run()


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Enqueue test jobs in a process of its own.")
    parser.add_argument("--database-url", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--types", required=True, help="job types, separated by commas")
    parser.add_argument("--stock", type=int, required=True, help="how many may wait")
    parser.add_argument("--seconds", type=float, required=True, help="that each job takes")
    parser.add_argument("--seed", type=float, required=True, help="of its choices")
    return parser.parse_args(arguments)


class _Producer:
    """Writes down what it is about to do, and what it was told of it."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.stopping = threading.Event()
        self._options = options
        self._kinds: list[Any] = job_types(options.types)
        self._chance = random.Random(options.seed)

    def run(self) -> None:
        """Enqueue until stopped. Raises what a fault does not explain."""
        while not self.stopping.is_set():
            try:
                with psycopg.connect(self._options.database_url, connect_timeout=5) as conn:
                    self._enqueue(conn)
            except (
                psycopg.OperationalError,
                psycopg.errors.IdleInTransactionSessionTimeout,
            ) as error:
                self._note("fail", text=str(error))
                self.stopping.wait(_PAUSE)

    def _enqueue(self, conn: psycopg.Connection[Any]) -> None:
        while not self.stopping.is_set():
            for kind in self._kinds:
                self._batch(conn, kind)
            while self._waiting(conn) >= self._options.stock and not self.stopping.wait(_PAUSE):
                pass

    def _batch(self, conn: psycopg.Connection[Any], kind: Any) -> None:
        jobs = [kind(key=key, seconds=self._options.seconds) for key in range(_BATCH)]
        self._note("invoke", text=kind.job_name)
        ids: list[int] = kind.enqueue_batch(conn, jobs)
        for job in ids:
            self._note("unknown", job=job, text=kind.job_name)
        if self._chance.random() < _OPEN_SHARE:
            self.stopping.wait(self._chance.uniform(0.0, _OPEN_SECONDS))
        sent = time.monotonic()
        conn.commit()
        for job in ids:
            self._note("ok", job=job, since=sent, text=kind.job_name)

    def _waiting(self, conn: psycopg.Connection[Any]) -> int:
        (count,) = conn.execute(_WAITING).fetchone() or (0,)
        conn.commit()
        return int(count)

    def _note(self, what: Any, *, job: int = 0, since: float = 0.0, text: str = "") -> None:
        """One write a line: whole, or not at all, whenever the process dies."""
        event = Event(what=what, process=self._options.name, job=job, since=since, text=text)
        os.write(1, event.line())


def _obey(stopping: threading.Event) -> None:
    for line in sys.stdin:
        if line.strip() == "stop":
            stopping.set()
    if not stopping.is_set():  # whoever started it is gone
        os._exit(9)
