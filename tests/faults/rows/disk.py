"""Row 23: the disk of the server is full."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg

from tests.faults.harness import Bench, CannotRunError, Found, row
from tests.helpers.fault_jobs import Brief, Flaky
from tests.helpers.runners import eventually

_SIZE = "192m"
_TYPES, _WORKERS, _RUNNERS = "brief,flaky", 10, 2
_MOST_JOBS = 40
_PATIENCE = 60.0
#: A megabyte of the write-ahead log, without which a server can do nothing.
_HEAVY = "SELECT pg_logical_emit_message(true, 'faults', repeat('x', 1000000))"
_MEGABYTE = 1_048_576


@row(
    "23",
    "disk full",
    "the server's data on a small file system that is filled up, under load, until it stops working, then freed: lost 0, "
    "work goes on; what ran was enqueued, or its commit was sent and not confirmed",
)
def disk_full(bench: Bench) -> Found:
    times = bench.pick(full=10, quick=2, tiny=1)
    found = Found(injected=times, jobs=0)
    with (
        _small_disk() as disk,
        bench.server(folder=disk) as server,
        bench.database(server.dsn) as url,
        bench.history() as history,
        bench.workers(url, history) as workers,
    ):
        with psycopg.connect(server.dsn, autocommit=True) as conn:
            conn.execute(
                "ALTER SYSTEM SET max_wal_size = '64MB'"
            )  # not the log is to fill the disk
            conn.execute("SELECT pg_reload_conf()")
        for _ in range(_RUNNERS):
            workers.start(_TYPES, workers=_WORKERS).ready()
        producer = _Producer(bench, url)
        for _ in range(times):
            producer.enqueue()
            some = bench.chance.randrange(1, 1 + len(producer.ids))
            history.wait_for("start", count=some)
            with _ballast(disk, bench.chance.randrange(_MEGABYTE)):
                began = time.monotonic()
                while producer.fill():
                    if time.monotonic() - began > _PATIENCE:
                        raise TimeoutError("the server works on a full disk")
            freed = time.monotonic()
            server.revive()
            done = set(producer.enqueue())
            eventually(
                lambda: done <= {event.job for event in history.events("end")},  # noqa: B023
                _PATIENCE,
            )
            found.recovered(time.monotonic() - freed)
            with psycopg.connect(server.dsn, autocommit=True) as conn:
                conn.execute("CHECKPOINT")
        eventually(lambda: _rows(url) == 0, _PATIENCE)
        verdict = history.check(producer.ids, unknown=producer.unknown)
        # what ended while nothing could be written runs again
        found.judge(verdict, duplicates=times * _RUNNERS * _WORKERS)
        found.jobs = len(producer.ids)
    return found


class _Producer:
    """Enqueues jobs, and knows which were acknowledged. A commit that was sent and not confirmed leaves `unknown` ones."""

    def __init__(self, bench: Bench, url: str) -> None:
        self._chance = bench.chance
        self._url = url
        self.ids: list[int] = []
        self.unknown: list[int] = []

    def enqueue(self) -> list[int]:
        """Some, which are acknowledged; their ids."""
        with psycopg.connect(self._url, connect_timeout=5) as conn:
            return self._enqueue(conn)

    def fill(self) -> bool:
        """Enqueue some more where that is not refused, and fill the log; False when the server is gone."""
        try:
            with psycopg.connect(self._url, connect_timeout=5) as conn:
                with contextlib.suppress(psycopg.errors.DiskFull):
                    self._enqueue(conn)
                conn.rollback()
                conn.execute(_HEAVY)
        except psycopg.OperationalError:
            return False
        return True

    def _enqueue(self, conn: psycopg.Connection[Any]) -> list[int]:
        kind: Any = self._chance.choice((Brief, Flaky))
        number = self._chance.randrange(1, _MOST_JOBS + 1)
        ids: list[int] = kind.enqueue_batch(
            conn, [kind(key=key, seconds=0.01) for key in range(number)]
        )
        self.unknown += ids
        conn.commit()
        del self.unknown[-len(ids) :]
        self.ids += ids
        return ids


@contextlib.contextmanager
def _small_disk() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="faults-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE},mode=755", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CannotRunError(f"a small file system can't be mounted: {done.stderr.strip()}")
        try:
            yield folder
        finally:
            subprocess.run(["umount", "-l", str(folder)], check=True)
    except FileNotFoundError as error:
        raise CannotRunError("there is no `mount`") from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _ballast(disk: Path, less: int) -> Iterator[None]:
    """A file that takes what is left, `less` so many bytes."""
    path = disk / "ballast"
    try:
        with path.open("wb", buffering=0) as file:
            for size in (_MEGABYTE, 4096):
                try:
                    while True:
                        file.write(os.urandom(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
            file.truncate(max(0, file.tell() - less))
        yield
    finally:
        path.unlink(missing_ok=True)


def _rows(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute("SELECT count(*) FROM background_jobs").fetchone()
        assert row is not None
        return int(row[0])
