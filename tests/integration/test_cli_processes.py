"""`workers run --processes`: a parent that watches over several, with real signals."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.helpers.running import PATIENCE, eventually
from tests.helpers.shop import Asks, ExitsInOrder, Logs, Shop, Waits, opened_shop

SESSIONS = "SELECT count(*) FROM worker_sessions WHERE alive"


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with opened_shop(tmp_path) as opened:
        yield opened


def children(conn: psycopg.Connection) -> list[int]:
    """The process ids of the runners that live, oldest first."""
    query = b"SELECT split_part(name, ':', 2)::int FROM worker_sessions WHERE alive ORDER BY id"
    return [pid for (pid,) in conn.execute(query)]


async def replaced(conn: psycopg.Connection, gone: int, kept: int) -> None:
    """Wait until of these two one has been replaced."""
    others = f"count(*) FILTER (WHERE name NOT LIKE '%:{gone}')"
    await eventually(conn, f"SELECT {others}, count(*) FROM worker_sessions", [(2, 2)])
    older, new = children(conn)
    assert older == kept
    assert new not in (gone, kept)


async def test_signals_are_passed_on_and_jobs_finish(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """Each child has a session; the first signal drains all, the second one stops their jobs."""
    Waits.enqueue_batch(conn, [Waits(), Waits()])
    parent = shop.run(database_url, "--processes", "2")
    await eventually(conn, SESSIONS, [(2,)])
    for _ in range(2):
        parent.wait_for("waits")
    parent.send_signal(signal.SIGTERM)
    for _ in range(2):  # a second signal that comes before the first was taken is one with it
        parent.wait_for("finishing the jobs that run")
    parent.send_signal(signal.SIGTERM)
    # they may have their say before the parent has
    assert "SIGTERM: passed on to 2 processes" in parent.rest()
    assert parent.returncode == 0
    rows = conn.execute("SELECT session_id, retries, crashes FROM background_jobs").fetchall()
    assert rows == [(None, 0, 0)] * 2
    assert conn.execute(SESSIONS).fetchone() == (0,)


async def test_a_service_manager_that_tells_every_process_lets_jobs_finish(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """The child is told by it and by its parent: that is one request, not one to let jobs finish and one to stop them."""
    Asks().enqueue(conn)
    parent = shop.run(database_url, "--processes", "1")
    parent.wait_for("asks")
    (child,) = children(conn)
    os.kill(child, signal.SIGTERM)
    parent.wait_for("SIGTERM: finishing the jobs that run")
    parent.send_signal(signal.SIGTERM)
    parent.wait_for("SIGTERM: passed on to 1 processes")
    assert parent.stdin is not None
    parent.stdin.write("to go on\n")
    parent.stdin.flush()
    parent.wait_for("was told to go on")
    output = parent.rest()
    assert "process 1 ended in order" in output
    assert "again" not in output
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)


async def test_one_that_dies_is_replaced(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """Its jobs run again, in another process; the others are left alone."""
    parent = shop.run(database_url, "--processes", "2")
    await eventually(conn, SESSIONS, [(2,)])
    first, second = children(conn)
    assert parent.pid not in (first, second)
    os.kill(first, signal.SIGKILL)
    parent.wait_for("was ended by SIGKILL; its jobs are rescued, another one follows in 0.5 s")
    await replaced(conn, first, second)
    parent.send_signal(signal.SIGINT)
    output = parent.rest()
    for number in (1, 2):
        assert f"process {number} ended in order\n" in output
    assert parent.returncode == 0


async def test_one_that_somebody_else_tells_to_end_is_replaced(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """Else there would be one less, for good, and nothing would say so."""
    parent = shop.run(database_url, "--processes", "2")
    await eventually(conn, SESSIONS, [(2,)])
    first, second = children(conn)
    os.kill(first, signal.SIGTERM)
    parent.wait_for("ended in order, told to by somebody else; another one follows in 0.5 s")
    await replaced(conn, first, second)
    parent.send_signal(signal.SIGTERM)
    parent.rest()
    assert parent.returncode == 0


async def test_one_that_a_job_ends_as_if_in_order_is_replaced(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """Exit code 0 says nothing: the job counts as crashed, and those behind it run in another process."""
    ExitsInOrder().enqueue(conn)
    parent = shop.run(database_url, "--processes", "1")
    ended = "process 1 ended with exit code 0 in the middle of its work; its jobs are rescued"
    parent.wait_for(f"{ended}, another one follows in 0.5 s")
    await eventually(conn, "SELECT count(*) FROM dead_jobs", [(1,)])
    Logs().enqueue(conn)
    parent.wait_for("sold to")
    parent.send_signal(signal.SIGTERM)
    parent.rest()
    assert parent.returncode == 0


async def test_one_that_can_not_be_started_is_tried_again(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """The others go on, and are not ended because there are too few file descriptors for a while."""
    if sys.platform != "linux":
        pytest.skip("the limits of another process can be set on Linux only")
    parent = shop.run(database_url, "--processes", "2")
    await eventually(conn, SESSIONS, [(2,)])
    first, second = children(conn)
    before = resource.prlimit(parent.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(parent.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    os.kill(first, signal.SIGKILL)
    parent.wait_for(" could not be started ([Errno 24] Too many open files); another one follows")
    resource.prlimit(parent.pid, resource.RLIMIT_NOFILE, before)
    await replaced(conn, first, second)
    parent.send_signal(signal.SIGTERM)
    parent.rest()
    assert parent.returncode == 0


async def test_one_that_is_killed_while_it_shuts_down_is_told_by_the_exit_code(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """Its job has not finished, nor gone back to its queue."""
    Waits().enqueue(conn)
    parent = shop.run(database_url, "--processes", "1")
    parent.wait_for("waits")
    parent.send_signal(signal.SIGTERM)
    parent.wait_for("finishing the jobs that run")
    [child] = children(conn)
    os.kill(child, signal.SIGKILL)
    assert "ERROR workers: process 1 was ended by SIGKILL\n" in parent.rest()
    assert parent.returncode == 1


def test_those_that_are_ended_before_they_are_ready_have_nothing_to_tell(
    shop: Shop, database_url: str
) -> None:
    """They have no handler yet, and no job."""
    parent = shop.run(database_url, "--processes", "1", app="shop:starts_late")
    parent.wait_for("starts")
    parent.send_signal(signal.SIGTERM)
    assert "INFO workers: process 1 was ended by SIGTERM\n" in parent.rest()
    assert parent.returncode == 0


async def test_children_outlive_a_killed_parent_only_to_finish(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """They see that it is gone, let their jobs finish and end in order."""
    Asks().enqueue(conn)
    parent = shop.run(database_url, "--processes", "1")
    parent.wait_for("asks")
    parent.kill()
    parent.wait_for("the process that watches over this one is gone")
    assert parent.stdin is not None
    parent.stdin.write("to go on\n")
    parent.stdin.flush()
    parent.wait_for("was told to go on")
    parent.wait_for("runner stopped")
    await eventually(conn, "SELECT count(*) FROM background_jobs", [(0,)])
    await eventually(conn, "SELECT count(*) FROM worker_sessions", [(0,)])


@pytest.fixture
def full_pipe() -> Iterator[int]:
    """An end to write to; nobody reads at the other one."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    yield writer
    os.close(reader)
    os.close(writer)


async def test_parent_whose_log_nobody_reads_passes_signals_on_and_ends(
    shop: Shop, database_url: str, conn: psycopg.Connection, full_pipe: int
) -> None:
    """Its children say nothing here."""
    parent = shop.run(database_url, "--processes", "2", app="shop:silent", stderr=full_pipe)
    await eventually(conn, SESSIONS, [(2,)])
    parent.send_signal(signal.SIGTERM)
    await eventually(conn, "SELECT count(*) FROM worker_sessions", [(0,)])
    assert await asyncio.to_thread(parent.wait, PATIENCE) == 0


def test_what_can_not_start_is_not_tried_for_ever(shop: Shop, raw_database_url: str) -> None:
    code, out, err = shop.call(
        *("run", "--app", "shop:runner", "--processes", "2"), DATABASE_URL=raw_database_url
    )
    assert (code, out) == (1, "")
    assert "run `workers migrate`" in err
    assert "before any was ready: giving up" in err
    assert "passed on" not in err, "nobody sent a signal"
    assert "runner stopped" not in err
    assert "Traceback" not in err


def test_children_that_end_in_order_are_not_replaced(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """And they are called as the parent was."""
    Logs.enqueue_batch(conn, [Logs() for _ in range(20)])
    code, out, err = shop.call(
        *("run", "--app", "shop:until_empty", "--database-url", database_url, "--processes", "3"),
        *("--no-uvloop", "--log-format", "json", "--log-level", "debug"),
    )
    assert (code, out) == (0, "closed\n" * 3), err
    assert err.count('"sold to somebody"') == 20
    for number in (1, 2, 3):
        assert f"process {number} ended: its queues are empty" in err
    assert conn.execute("SELECT count(*) FROM background_jobs").fetchone() == (0,)
