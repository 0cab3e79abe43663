"""Producers that enqueue all the time, whatever becomes of the server, and know which of their jobs were acknowledged."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import psycopg

from tests.helpers.history import PATIENCE

__all__ = ["Producer", "producing"]

#: Seconds until it looks again whether there is room, or a server.
_PAUSE = 0.02
_WAITING = "SELECT count(*) FROM background_jobs WHERE session_id IS NULL"


class Producer(threading.Thread):
    """Enqueues small batches of `kinds`, in turns, while fewer than `stock` jobs wait.

    `acked` are the jobs whose commit was confirmed. A commit that was sent and not confirmed leaves `unknown` ones.
    """

    def __init__(self, url: str, kinds: Sequence[Any], *, stock: int, seconds: float) -> None:
        super().__init__(name="producer", daemon=True)
        self.acked: dict[Any, list[int]] = {kind: [] for kind in kinds}
        self.unknown: list[int] = []
        #: How often it found the server gone.
        self.refused = 0
        #: Set when it has failed for a reason that a fault does not explain.
        self.error: Exception | None = None
        self._url = url
        self._kinds = kinds
        self._stock = stock
        self._seconds = seconds
        self._stopping = threading.Event()

    @property
    def jobs(self) -> list[int]:
        """All that were acknowledged."""
        return [job for ids in self.acked.values() for job in ids]

    def run(self) -> None:
        """Enqueue until stopped."""
        while not self._stopping.is_set():
            try:
                with psycopg.connect(self._url, connect_timeout=5) as conn:
                    self._enqueue(conn)
            except (psycopg.OperationalError, psycopg.errors.IdleInTransactionSessionTimeout):
                self.refused += 1
                self._stopping.wait(_PAUSE)
            except Exception as error:
                self.error = error
                return

    def stop(self) -> None:
        """Stop, and raise what went wrong."""
        self._stopping.set()
        self.join(PATIENCE)
        if self.error is not None:
            raise self.error

    def _enqueue(self, conn: psycopg.Connection[Any]) -> None:
        while not self._stopping.is_set():
            for kind in self._kinds:
                jobs = [kind(key=key, seconds=self._seconds) for key in range(5)]
                ids: list[int] = kind.enqueue_batch(conn, jobs)
                self.unknown += ids
                conn.commit()
                del self.unknown[-len(ids) :]
                self.acked[kind] += ids
            while self._waiting(conn) >= self._stock and not self._stopping.wait(_PAUSE):
                pass

    def _waiting(self, conn: psycopg.Connection[Any]) -> int:
        (count,) = conn.execute(_WAITING).fetchone() or (0,)
        conn.commit()
        return int(count)


@contextlib.contextmanager
def producing(
    url: str, *kinds: Any, producers: int = 2, stock: int = 60, seconds: float = 0.02
) -> Iterator[list[Producer]]:
    """Producers of these kinds of jobs, stopped at the end."""
    threads = [Producer(url, kinds, stock=stock, seconds=seconds) for _ in range(producers)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        for thread in threads:
            thread.stop()
