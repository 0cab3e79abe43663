"""`workers run`: a process that runs jobs, and how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from tests.helpers.running import PATIENCE
from tests.helpers.shop import (
    Asks,
    Blocks,
    EndsLoop,
    Floods,
    HoldsGil,
    KillsRunner,
    LeavesBehind,
    Logs,
    Shop,
    Waits,
    WaitsInThread,
    opened_shop,
)
from workers.storage.base import MaintenanceRequest
from workers.storage.postgres.storage import PostgresStorage


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    with opened_shop(tmp_path) as opened:
        yield opened


def rows(conn: psycopg.Connection) -> list[tuple[Any, ...]]:
    """Whether each job is claimed, and its counters."""
    query = b"SELECT session_id IS NOT NULL, retries, crashes FROM background_jobs ORDER BY id"
    return conn.execute(query).fetchall()


def test_first_signal_lets_the_job_finish(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    Asks().enqueue(conn)
    process = shop.run(database_url)
    process.wait_for("asks")
    process.send_signal(signal.SIGTERM)
    process.wait_for("SIGTERM: finishing")
    Waits().enqueue(conn)  # comes too late
    assert process.stdin is not None
    process.stdin.write("to go on\n")
    process.stdin.flush()
    process.wait_for("was told to go on")
    process.rest()
    assert process.returncode == 0
    assert rows(conn) == [(False, 0, 0)]


def test_second_signal_gives_the_job_back_uncounted(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    Waits().enqueue(conn)
    process = shop.run(database_url)
    process.wait_for("waits")
    process.send_signal(signal.SIGINT)
    process.wait_for("SIGINT: finishing")
    assert rows(conn) == [(True, 0, 0)]
    process.send_signal(signal.SIGTERM)
    output = process.rest()
    assert "workers: stopping 1 jobs" in output
    assert "grace" not in output
    assert process.returncode == 0
    assert rows(conn) == [(False, 0, 0)]


def test_job_that_would_not_stop_is_left_behind(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    job_id = WaitsInThread().enqueue(conn)
    process = shop.run(database_url)
    process.wait_for("waits")
    process.send_signal(signal.SIGTERM)
    process.wait_for("SIGTERM: finishing")
    process.send_signal(signal.SIGTERM)
    output = process.rest()
    assert f"jobs that would not stop: {job_id} (waits_in_thread);" in output
    assert "Traceback" not in output
    assert process.returncode == 3
    assert rows(conn) == [(True, 0, 0)]  # its claim stands until the session is found dead


def test_loop_that_stalls_ends_the_process(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    job_id = Blocks().enqueue(conn)
    process = shop.run(database_url)
    output = process.rest()
    assert process.returncode == 4
    assert f"{job_id} (blocks)" in output
    assert "time.sleep(600)" in output
    assert "Fatal" not in output


def test_loop_that_stalls_in_a_log_that_nobody_reads_ends_the_process(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """What says so waits for the same handler."""
    Floods().enqueue(conn)
    assert shop.run(database_url).wait(PATIENCE) == 4


@pytest.mark.skipif(sys.platform != "linux", reason="there is no watchdog elsewhere")
def test_gil_that_is_not_let_go_ends_the_process(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """No thread of it runs any more, but its stack is told."""
    HoldsGil().enqueue(conn)
    process = shop.run(database_url)
    output = process.rest()
    assert process.returncode == 1
    assert "Timeout" in output
    assert re.search(r"shop\.py.* in run\b", output)
    assert rows(conn) == [(True, 0, 0)]  # until its session is found dead


@pytest.mark.parametrize("how", ["stop", "exit"])
def test_job_that_ends_the_loop_counts_as_crashed(
    shop: Shop, database_url: str, conn: psycopg.Connection, how: str
) -> None:
    """Given back uncounted, it would end one process after the other, and never be found."""
    EndsLoop(how=how).enqueue(conn)
    code, _, err = shop.call("run", "--app", "shop:bad_jobs", DATABASE_URL=database_url)
    assert code == 5
    assert "a job ended the event loop" in err
    assert rows(conn) == [(True, 0, 0)]  # until its session is found dead
    storage = PostgresStorage(database_url)
    control = storage.control()
    control.open("sweeper", 15)
    request = MaintenanceRequest(lease=15, declared={}, queues=[])
    while not control.rescue():
        control.maintain(request)
        control.wait(0.1)
    control.close()
    assert rows(conn) == [(False, 0, 1)]


@pytest.mark.parametrize("how", ["thread", "task"])
def test_what_jobs_leave_behind_does_not_keep_the_process(
    shop: Shop, database_url: str, conn: psycopg.Connection, how: str
) -> None:
    LeavesBehind(how=how).enqueue(conn)
    code, _, err = shop.call("run", "--app", "shop:bad_jobs", DATABASE_URL=database_url)
    assert code == 0
    what = "threads: endless" if how == "thread" else "a task that does not end"
    assert f"the process ends without what jobs have left behind: {what}" in err
    assert rows(conn) == []


def test_runner_that_dies_does_not_wait_for_what_a_job_does_in_a_thread(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """It would never end, and nobody would be told why."""
    KillsRunner().enqueue(conn)
    process = shop.run(database_url, app="shop:dies")
    output = process.rest()
    assert process.returncode == 1
    error = "Error: the runner died: RuntimeError('no clock')\n"
    assert output.count(error) == 1
    told, left = output.split(error)
    assert "the process ends without what jobs have left behind: threads: AnyIO" in left
    assert "Traceback" in told, "of the session's thread, in the log"


def test_application_that_fails_at_the_end_does_not_wait_for_what_jobs_leave_behind(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    LeavesBehind(how="thread").enqueue(conn)
    process = shop.run(database_url, app="shop:fails_at_the_end")
    output = process.rest()
    assert process.returncode == 1
    assert output.count("Error: OSError: the mailer can't be closed\n") == 1
    assert "the process ends without what jobs have left behind: threads: endless" in output
    assert rows(conn) == []


def test_context_manager_json_logs_and_uvloop(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """Rule 30: asyncio, or uvloop."""
    job_id = Logs().enqueue(conn)
    code, out, err = shop.call(
        *("run", "--app", "shop:until_empty", "--database-url", database_url),
        *("--uvloop", "--log-format", "json", "--log-level", "debug"),
    )
    assert (code, out) == (0, "closed\n"), err
    entries = [json.loads(line) for line in err.splitlines()]
    about_the_job = [entry for entry in entries if "job_id" in entry]
    assert [(entry["logger"], entry["level"]) for entry in about_the_job] == [
        ("workers.jobs", "debug"),
        ("shop", "info"),
        ("workers.jobs", "debug"),
    ]
    start, own, end = about_the_job
    assert own["message"] == "sold to somebody"
    assert end["outcome"] == "completed"
    fields = {"job_id": job_id, "job_type": "logs", "queue": "default", "attempt": 1}
    for entry in (start, own, end):
        assert fields.items() <= entry.items()
        assert entry["session"] == start["session"] > 0


def test_what_became_of_jobs_is_told_by_default(
    shop: Shop, database_url: str, conn: psycopg.Connection
) -> None:
    """Completed jobs as one line a second, not one each; then that it stopped."""
    Logs.enqueue_batch(conn, [Logs() for _ in range(300)])
    code, _, err = shop.call("run", "--app", "shop:until_empty", DATABASE_URL=database_url)
    assert code == 0
    tallies = re.findall(r"INFO workers: queue default: (\d+) completed", err)
    assert sum(map(int, tallies)) == 300
    assert len(tallies) <= 3
    assert "INFO workers: runner stopped: session " in err
    code, _, err = shop.call(
        *("run", "--app", "shop:until_empty", "--log-level", "warning"), DATABASE_URL=database_url
    )
    assert (code, err) == (0, "")


def test_applications_own_logging_is_kept(shop: Shop, database_url: str) -> None:
    code, _, err = shop.call("run", "--app", "shop:own_logging", DATABASE_URL=database_url)
    assert code == 0
    assert "MINE runner started" in err
    assert all(line.startswith("MINE ") for line in err.splitlines())


def test_runner_that_can_not_start_says_why(shop: Shop, raw_database_url: str) -> None:
    code, out, err = shop.call("run", "--app", "shop:runner", DATABASE_URL=raw_database_url)
    assert (code, out) == (1, "")
    assert err.splitlines()[-1].startswith("Error: ")
    assert "run `workers migrate`" in err.splitlines()[-1]
    assert "Traceback" not in err


SLOW = """
import sys, time
print("importing", flush=True)
time.sleep(600)
"""


def test_a_container_that_is_stopped_while_it_starts(shop: Shop) -> None:
    """The kernel keeps from process 1 what it does not handle: the signal would be lost, and jobs begun that are killed."""
    (shop.directory / "slow.py").write_text(SLOW)
    apart = ["unshare", "--pid", "--fork", "--kill-child"]
    try:
        subprocess.run([*apart, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no process namespaces here: {error}")
    command = [*apart, sys.executable, "-m", "workers", "run", "--app", "slow:runner"]
    with subprocess.Popen(
        command, cwd=shop.directory, env=shop.environment, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "importing\n"
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
            os.kill(int(children), signal.SIGTERM)
            assert process.wait(PATIENCE) == 128 + signal.SIGTERM
        finally:
            process.kill()
