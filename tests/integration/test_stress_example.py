"""The stress test, run as its users run it: it has to end with every job accounted for, and to notice when one is not."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
import pytest

from examples.stress_test.options import parse

ROOT = Path(__file__).parents[2]
SECONDS = 60

# The seeds are those of games in which no job fails more than twice.
SMALL = ("--jobs", "200", "--seed", "371", "--speed", "50")
TINY = ("--jobs", "40", "--seed", "18", "--speed", "50")

# Behind everybody's back, the first job of a type vanishes while it waits.
THIEF = """
CREATE TABLE stolen (id bigint);
CREATE FUNCTION steal() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock(hashtext('one theft'));
    IF NOT EXISTS (SELECT FROM stolen) THEN
        INSERT INTO stolen VALUES (NEW.id);
        DELETE FROM background_jobs WHERE id = NEW.id;
    END IF;
    RETURN NULL;
END
$$;
CREATE TRIGGER thief AFTER INSERT ON background_jobs
FOR EACH ROW WHEN (NEW.job_type = 'heal_pokemon') EXECUTE FUNCTION steal();
"""

# Notes each time that a job is given back; a deduplicated one is taken out for that, and put back.
WITNESS = """
CREATE TABLE rescues (job_id bigint);
CREATE FUNCTION note_rescue() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO rescues VALUES (NEW.id);
    RETURN NULL;
END
$$;
CREATE TRIGGER witness AFTER UPDATE OF crashes ON background_jobs
FOR EACH ROW WHEN (NEW.crashes > OLD.crashes) EXECUTE FUNCTION note_rescue();
CREATE TRIGGER second_witness AFTER INSERT ON background_jobs
FOR EACH ROW WHEN (NEW.crashes > 0) EXECUTE FUNCTION note_rescue();
"""


def start(url: str, *flags: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "examples.stress_test", "--database-url", url, "--json"]
    pipe = subprocess.PIPE
    return subprocess.Popen([*command, *flags], stdout=pipe, stderr=pipe, text=True, cwd=ROOT)


def finish(game: subprocess.Popen[str]) -> tuple[dict[str, Any], str]:
    """Return the object that it printed on one line, and everything else."""
    try:
        output, others = game.communicate(timeout=SECONDS)
    finally:
        game.kill()
    assert output.count("\n") == 1, others
    result: dict[str, Any] = json.loads(output)
    assert list(result) == [
        *("enqueued", "deduplicated", "completed", "retried", "dead", "lost"),
        *("per_second", "queues"),
    ]
    for queue in result["queues"].values():
        ended = queue["completed"] + queue["dead"] + queue["lost"] + queue["waiting"]
        assert queue["enqueued"] == ended
    return result, others


def waiting(result: dict[str, Any]) -> int:
    return sum(queue["waiting"] for queue in result["queues"].values())


def count(conn: psycopg.Connection, table: str) -> int:
    row = conn.execute(f"SELECT count(*) FROM {table}".encode()).fetchone()
    assert row is not None
    return int(row[0])


def test_every_job_is_accounted_for(conn: psycopg.Connection, database_url: str) -> None:
    game = start(database_url, *SMALL)
    result, others = finish(game)
    assert game.returncode == 0
    assert result["lost"] == 0
    assert result["enqueued"] + result["deduplicated"] == 200
    assert result["deduplicated"] > 0
    assert result["retried"] > 0
    assert result["completed"] + result["dead"] == result["enqueued"]
    assert result["completed"] == count(conn, "archived_jobs")
    assert count(conn, "background_jobs") == 0
    assert [queue["enqueued"] for queue in result["queues"].values()] == [
        *(80, 50 - result["deduplicated"], 30, 20, 20),
    ]
    assert all(queue["pickup_p50_ms"] is not None for queue in result["queues"].values())
    assert "No job lost" in others


def test_killed_runner_loses_nothing(database_url: str) -> None:
    game = start(database_url, *SMALL, "--kill-workers", "1", "--runners", "2")
    result, others = finish(game)
    assert game.returncode == 0
    assert result["lost"] == 0
    assert result["completed"] + result["dead"] == result["enqueued"]
    assert sum(queue["rescued"] for queue in result["queues"].values()) > 0
    assert "killed runner-" in others
    assert "rescued " in others


def test_rescues_are_counted_also_of_jobs_that_failed_since(
    conn: psycopg.Connection, database_url: str
) -> None:
    """Their rows have forgotten it."""
    conn.execute(WITNESS.encode())
    flags = ("--failures", "--kill-workers", "1", "--runners", "2")
    result, _ = finish(start(database_url, *SMALL, *flags))
    rescued = sum(queue["rescued"] for queue in result["queues"].values())
    assert rescued == count(conn, "rescues") > 0


def test_loss_is_noticed(conn: psycopg.Connection, database_url: str) -> None:
    conn.execute(THIEF.encode())
    game = start(database_url, *TINY)
    result, others = finish(game)
    assert game.returncode == 1
    assert result["lost"] == 1
    assert result["queues"]["pokemon_center"]["lost"] == 1
    assert "LOST: 1 jobs" in others


def test_what_is_not_done_in_time_stays(conn: psycopg.Connection, database_url: str) -> None:
    game = start(database_url, *SMALL[:4], "--speed", "10", "--duration", "1")
    result, others = finish(game)
    assert game.returncode == 0
    assert result["lost"] == 0
    assert waiting(result) == count(conn, "background_jobs") > 0
    assert "ended by --duration" in others


def test_ctrl_c_ends_with_the_result(conn: psycopg.Connection, database_url: str) -> None:
    row = conn.execute("SELECT workers_channel()").fetchone()
    assert row is not None
    conn.execute(f"LISTEN {row[0]}".encode())
    game = start(database_url, "--rate", "20")
    assert list(conn.notifies(timeout=SECONDS, stop_after=1))  # jobs are being enqueued
    game.send_signal(signal.SIGINT)
    result, others = finish(game)
    assert game.returncode == 130
    assert result["lost"] == 0
    assert result["enqueued"] < 2000
    assert "ended by an interruption" in others
    assert ("still in the table" in others) == bool(waiting(result))


def test_database_without_tables_gets_a_clear_error(raw_database_url: str) -> None:
    game = start(raw_database_url, *TINY, "--skip-db-setup")
    output, others = game.communicate(timeout=SECONDS)
    assert game.returncode == 1
    assert output == ""
    assert others.startswith("The game can't be played: ")
    assert "run `workers migrate`" in others
    assert "Traceback" not in others


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--jobs", "0"], "argument --jobs: 0 is not from 1 to 10,000,000"),
        (["--jobs", "many"], "argument --jobs: invalid whole number value: 'many'"),
        (["--speed", "0"], "argument --speed: 0 is not above 0"),
        (["--speed", "nan"], "argument --speed: nan is not above 0"),
        (["--kill-workers", "-1"], "argument --kill-workers: -1 is not from 1 to 10,000,000"),
        (["--skip-db-setup"], "--skip-db-setup needs --database-url"),
        (["--worker", "3"], "unrecognized arguments: --worker 3"),
    ],
)
def test_bad_flags_get_a_clear_error(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        parse(flags)
    assert exit.value.code == 2
    assert message in capsys.readouterr().err
