"""Runners in the test's own process, and the database's answers to wait for."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeVar

import anyio.to_thread
import psycopg

from tests.helpers.fault_jobs import Stage
from tests.helpers.history import PATIENCE, Event, History, Kind
from workers import BackgroundJob, Runner, RunnerHandle
from workers.storage import StorageTarget

__all__ = ["arrived", "backends", "eventually", "hosted", "left"]

T = TypeVar("T")


@contextlib.asynccontextmanager
async def hosted(
    target: StorageTarget,
    stage: Stage,
    *job_classes: type[BackgroundJob[Stage]],
    num_workers: int = 10,
    poll_interval: float = 0.2,
    **settings: Any,
) -> AsyncIterator[RunnerHandle]:
    """A runner of these job types, ready; its held jobs are let go and it is shut down at the end."""
    runner = Runner(target, stage, **settings)
    for job_class in job_classes:
        runner.register_job_type(job_class)
        runner.configure_queue(
            job_class.queue, num_workers=num_workers, poll_interval=poll_interval
        )
    async with runner.start() as handle:
        try:
            yield handle
        finally:
            stage.open()


async def arrived(
    history: History, *kinds: Kind, count: int = 1, where: Callable[[Event], bool] | None = None
) -> list[Event]:
    """`History.wait_for` without blocking the event loop."""
    return await anyio.to_thread.run_sync(
        lambda: history.wait_for(*kinds, count=count, where=where), abandon_on_cancel=True
    )


def eventually(ask: Callable[[], T], seconds: float = PATIENCE) -> T:
    """Ask the database until the answer is true, and return it. Raises TimeoutError with the last answer."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"the last answer was {answer!r}")
        pause.wait(0.01)
    return answer


def left(conn: psycopg.Connection[Any]) -> dict[str, int]:
    """What stands in the tables: all zero after runners that finished everything and shut down."""
    tables = ("background_jobs", "dead_jobs", "worker_sessions", "worker_claims")
    return {table: _count(conn, table) for table in tables}


def _count(conn: psycopg.Connection[Any], table: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM {table}").fetchone()
    assert row is not None
    return int(row[0])


def backends(conn: psycopg.Connection[Any], name: str) -> list[int]:
    """The backends that serve the application `name`."""
    rows = conn.execute(
        "SELECT pid FROM pg_stat_activity WHERE application_name = %s ORDER BY pid", [name]
    )
    return [pid for (pid,) in rows]
