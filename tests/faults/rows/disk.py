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

import psycopg

from tests.faults.harness import Bench, CannotRunError, Found, row
from tests.helpers.fault_jobs import Brief
from tests.helpers.own_server import OwnServer
from tests.helpers.runners import eventually

_SIZE = "192m"
_BATCH = 20
_PATIENCE = 60.0
#: A megabyte of the write-ahead log, without which a server can do nothing.
_HEAVY = "SELECT pg_logical_emit_message(true, 'faults', repeat('x', 1000000))"


@row(
    "23",
    "disk full",
    "the server's data on a small file system that is filled up until it stops working, then freed: lost 0, work goes on",
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
        for _ in range(2):
            workers.start("brief").ready()
        ids: list[int | None] = []
        unknown = 0
        for _ in range(times):
            ids += _enqueued(url)
            with _ballast(disk):
                began = time.monotonic()
                while _still_up(url, ids):
                    if time.monotonic() - began > _PATIENCE:
                        raise TimeoutError("the server works on a full disk")
                unknown += _BATCH
            freed = time.monotonic()
            _back(server)
            first = len(ids)
            ids += _enqueued(url)
            done = {job for job in ids[first:] if job is not None}
            eventually(
                lambda: done <= {event.job for event in history.events("end")},  # noqa: B023
                _PATIENCE,
            )
            found.recovered(time.monotonic() - freed)
            with psycopg.connect(server.dsn, autocommit=True) as conn:
                conn.execute("CHECKPOINT")
        eventually(lambda: _rows(url) == 0, _PATIENCE)
        verdict = history.check(ids)
        if len(verdict.unexpected) <= unknown:  # enqueues whose outcome nobody was told
            verdict.unexpected.clear()
        # what ended while nothing could be written runs again
        found.judge(verdict, duplicates=times * 2 * 10)
        found.jobs = len(ids)
    return found


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
def _ballast(disk: Path) -> Iterator[None]:
    """A file that takes what is left."""
    path = disk / "ballast"
    try:
        with path.open("wb", buffering=0) as file:
            for size in (1_048_576, 4096):
                try:
                    while True:
                        file.write(os.urandom(size))
                except OSError as error:
                    if error.errno != errno.ENOSPC:
                        raise
        yield
    finally:
        path.unlink(missing_ok=True)


def _enqueued(url: str) -> list[int | None]:
    with psycopg.connect(url, autocommit=True) as conn:
        return Brief.enqueue_batch(conn, _jobs())


def _still_up(url: str, ids: list[int | None]) -> bool:
    """Enqueue some more where that is not refused, and fill the log; False when the server is gone."""
    try:
        with psycopg.connect(url, autocommit=True, connect_timeout=5) as conn:
            with contextlib.suppress(psycopg.errors.DiskFull):
                ids += Brief.enqueue_batch(conn, _jobs())
            conn.execute(_HEAVY)
    except psycopg.OperationalError:
        return False
    return True


def _jobs() -> list[Brief]:
    return [Brief(key=key, seconds=0.01) for key in range(_BATCH)]


def _back(server: OwnServer) -> None:
    """It comes back by itself, or is started."""
    with contextlib.suppress(psycopg.Error), psycopg.connect(server.dsn, connect_timeout=5):
        return
    with contextlib.suppress(Exception):
        server.kill()
    server.start()


def _rows(url: str) -> int:
    with psycopg.connect(url, autocommit=True) as conn:
        row = conn.execute("SELECT count(*) FROM background_jobs").fetchone()
        assert row is not None
        return int(row[0])
