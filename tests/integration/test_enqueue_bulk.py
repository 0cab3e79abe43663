"""`enqueue_batch(..., return_ids=False)`: a stream where the connection can, a batch where it can't, the same everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import psycopg
import pytest

from tests.helpers.enqueue_targets import ATOMIC, SETTLED, Target, open_target
from workers import BackgroundJob, InvalidJobError
from workers.storage.memory import MemoryStorage

HOSTILE = "tab \t, line\n, \\N, \\. and \\\\ 100% é 🦊 \u2028"
ROWS = "SELECT job_type, data, priority, queue, run_at, deduplicated FROM background_jobs ORDER BY position"
NUMBERS = "SELECT data->>'number' FROM background_jobs ORDER BY position"


class Load(BackgroundJob[Any]):
    queue = "bulk"
    priority = 3

    number: int
    text: str = ""

    def run(self, ctx: Any) -> None: ...


class Once(BackgroundJob[Any]):
    deduplicated = True

    number: int

    def run(self, ctx: Any) -> None: ...


@pytest.fixture(params=SETTLED)
def target(request: pytest.FixtureRequest, database_url: str) -> Iterator[Target]:
    with open_target(SETTLED[request.param], database_url) as target:
        yield target


@pytest.fixture(params=ATOMIC)
def atomic(request: pytest.FixtureRequest, database_url: str) -> Iterator[Target]:
    with open_target(ATOMIC[request.param], database_url) as target:
        yield target


def test_on_every_connection(target: Target, conn: psycopg.Connection) -> None:
    """In the caller's transaction, in order, whatever is in the texts."""
    jobs = (Load(number=number, text=HOSTILE) for number in range(600))
    result: object = target.end(Load.enqueue_batch(target.conn, jobs, return_ids=False))
    assert result is None
    assert conn.execute(ROWS).fetchall() == []
    target.commit()
    found = conn.execute(ROWS).fetchall()
    assert found == [
        ("load", {"number": number, "text": HOSTILE}, 3, "bulk", None, False)
        for number in range(600)
    ]


def test_a_rollback_leaves_nothing(target: Target, conn: psycopg.Connection) -> None:
    target.end(Load.enqueue_batch(target.conn, [Load(number=1)], return_ids=False))
    target.rollback()
    assert conn.execute(ROWS).fetchall() == []


def test_a_refused_job_leaves_nothing_and_the_transaction_usable(
    target: Target, conn: psycopg.Connection
) -> None:
    """All or none, though the stream had begun."""
    bad = (Load(number=number, text="\0" if number == 700 else "") for number in range(800))
    with pytest.raises(InvalidJobError, match=r"jobs\[700\].*NUL"):
        target.end(Load.enqueue_batch(target.conn, bad, return_ids=False))
    target.end(Load(number=7).enqueue(target.conn))
    target.commit()
    assert conn.execute(NUMBERS).fetchall() == [("7",)]


def test_in_autocommit_all_or_nothing(atomic: Target, conn: psycopg.Connection) -> None:
    bad = (Load(number=number, text="\0" if number == 700 else "") for number in range(800))
    with pytest.raises(InvalidJobError):
        atomic.end(Load.enqueue_batch(atomic.conn, bad, return_ids=False))
    assert conn.execute(ROWS).fetchall() == []
    jobs = [Load(number=number) for number in range(3)]
    atomic.end(Load.enqueue_batch(atomic.conn, jobs, return_ids=False))
    assert conn.execute(NUMBERS).fetchall() == [("0",), ("1",), ("2",)]


def test_options_and_times(target: Target, conn: psycopg.Connection) -> None:
    """Also in sessions with a style of their own."""
    when = datetime(2999, 12, 31, 23, 30, tzinfo=UTC)
    for options in ({"run_at": when}, {"delay": 90, "queue": "later"}, {"priority": -5}):
        jobs = [Load(number=1)]
        target.end(Load.enqueue_batch(target.conn, jobs, return_ids=False, **options))
    target.commit()
    ((now,),) = conn.execute("SELECT clock_timestamp()")
    first, second, third = conn.execute(ROWS).fetchall()
    assert first[2:5] == (3, "bulk", when)
    assert second[3] == "later"
    assert timedelta(seconds=30) < second[4] - now <= timedelta(seconds=90)
    assert third[2:5] == (-5, "bulk", None)


def test_deduplicated_jobs_collapse(target: Target, conn: psycopg.Connection) -> None:
    jobs = [Once(number=number) for number in (1, 2, 1)]
    result: object = target.end(Once.enqueue_batch(target.conn, jobs, return_ids=False))
    assert result is None
    target.commit()
    assert conn.execute(NUMBERS).fetchall() == [("1",), ("2",)]


def test_nothing_is_fine(target: Target, conn: psycopg.Connection) -> None:
    for job_class in (Load, Once):
        assert target.end(job_class.enqueue_batch(target.conn, [], return_ids=False)) is None
    target.commit()
    assert conn.execute(ROWS).fetchall() == []


def test_workers_are_woken_once_by_the_lowest_position(
    conn: psycopg.Connection, database_url: str
) -> None:
    """Rule 27; what waits for a time wakes nobody."""
    conn.execute("SELECT set_config('search_path', current_setting('search_path'), false)")
    ((channel,),) = conn.execute("SELECT workers_channel()")
    conn.execute(f'LISTEN "{channel}"'.encode())
    with psycopg.connect(database_url, autocommit=True) as producer:
        Load.enqueue_batch(producer, [Load(number=0)], return_ids=False, delay=60)
        Load.enqueue_batch(producer, [], return_ids=False)
        Load.enqueue_batch(producer, [Load(number=n) for n in range(500)], return_ids=False)
        Load(number=1).enqueue(producer, queue="end")
    heard = [message.payload.split() for message in conn.notifies(timeout=10, stop_after=2)]
    ((lowest,),) = conn.execute("SELECT min(position) FROM background_jobs WHERE run_at IS NULL")
    assert [item[1:] for item in heard] == [["3", "bulk"], ["3", "end"]]
    assert lowest - 2 <= int(heard[0][0]) <= lowest


def test_a_pipeline_takes_the_batch(database_url: str, conn: psycopg.Connection) -> None:
    """COPY is not allowed there."""
    with psycopg.connect(database_url, autocommit=True) as producer, producer.pipeline():
        Load.enqueue_batch(producer, (Load(number=n) for n in range(3)), return_ids=False)
    assert conn.execute(NUMBERS).fetchall() == [("0",), ("1",), ("2",)]


@pytest.mark.parametrize("zone", ["Asia/Tokyo", "Asia/Kolkata", "Pacific/Guam"])
@pytest.mark.parametrize("style", ["German", "SQL, DMY", "Postgres, MDY"])
def test_a_session_with_its_own_style_of_dates(
    database_url: str, conn: psycopg.Connection, style: str, zone: str
) -> None:
    """They write IST, which is India's time or Israel's, and ChST, which no server reads."""
    with psycopg.connect(database_url) as producer:
        producer.execute(f"SET datestyle = '{style}'; SET timezone = '{zone}'")
        when = datetime(2999, 2, 3, 4, 5, 6, tzinfo=UTC)
        Load.enqueue_batch(producer, [Load(number=1)], return_ids=False, run_at=when)
    assert conn.execute("SELECT run_at FROM background_jobs").fetchall() == [(when,)]


async def test_on_a_storage_without_a_database() -> None:
    storage = MemoryStorage()
    jobs = (Load(number=number) for number in range(3))
    await Load.enqueue_batch(storage, jobs, return_ids=False)
    assert [row.available for row in await storage.stats()] == [3]
