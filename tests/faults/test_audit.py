"""The audit of the job table finds each thing that must not be, and nothing in what every job goes through."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from tests.helpers import audit
from tests.helpers.fault_jobs import Brief, Flaky, Twin
from tests.helpers.history import History
from tests.helpers.processes import Crew
from tests.helpers.runners import eventually, left

pytestmark = pytest.mark.usefixtures("audited")

_CLAIMED = "UPDATE background_jobs SET session_id = %s, claim_token = %s WHERE id = %s"
_GIVEN_BACK = "UPDATE background_jobs SET session_id = NULL, claim_token = NULL WHERE id = %s"
_GONE = "DELETE FROM background_jobs WHERE id = %s"
_SESSION = (
    "INSERT INTO worker_sessions (name, lease_until, alive) VALUES (%s, now(), %s) RETURNING id"
)


@pytest.fixture
def audited(conn: psycopg.Connection[Any], schema: str) -> Iterator[None]:
    """A schema with an audit, which is taken away at the end: others get it afterwards."""
    audit.install(conn, schema)
    yield
    audit.remove(conn)


@pytest.fixture
def job(conn: psycopg.Connection[Any]) -> int:
    """A waiting job."""
    return Brief().enqueue(conn) or 0


def session(conn: psycopg.Connection[Any], name: str, *, alive: bool = True) -> int:
    """A session of the process `name`."""
    (number,) = conn.execute(_SESSION, [name, alive]).fetchone() or (0,)
    return int(number)


def written_by(conn: psycopg.Connection[Any], name: str) -> None:
    """What follows is written by that process."""
    conn.execute(sql.SQL("SET {} = {}").format(sql.SQL(audit.WRITER), sql.Literal(name)))


def test_work_of_every_kind_is_no_finding(
    conn: psycopg.Connection[Any], history: History, workers: Crew
) -> None:
    for kind in (Brief, Flaky, Twin):
        for key in range(5):
            kind(key=key).enqueue(conn)
    victim = workers.start("brief,flaky", workers=2, failpoints="complete=kill@1")
    assert victim.wait() == -9
    rest = workers.start("brief,flaky,twin")
    rest.open()
    eventually(lambda: left(conn)["background_jobs"] == 0)
    rest.kill()
    findings = audit.judge(conn)
    assert findings == audit.Findings([], [], [], [])
    writers = conn.execute("SELECT DISTINCT writer FROM audit WHERE change = 'delete'").fetchall()
    assert (rest.name,) in writers


def test_claim_on_a_job_that_somebody_had(conn: psycopg.Connection[Any], job: int) -> None:
    first, second = session(conn, "a"), session(conn, "b")
    conn.execute(_CLAIMED, [first, 1, job])
    assert audit.judge(conn).taken == []
    conn.execute(_CLAIMED, [second, 2, job])
    findings = audit.judge(conn)
    assert [(change.job, change.old_session, change.new_session) for change in findings.taken] == [
        (job, first, second)
    ]
    assert len(findings.changes) == 3


@pytest.mark.parametrize("write", [_GONE, _GIVEN_BACK])
def test_write_to_the_job_of_another(conn: psycopg.Connection[Any], job: int, write: str) -> None:
    conn.execute(_CLAIMED, [session(conn, "a"), 1, job])
    written_by(conn, "b")
    conn.execute(write.encode(), [job])
    assert [(change.owner, change.writer) for change in audit.judge(conn).stale] == [("a", "b")]


@pytest.mark.parametrize(("writer", "alive"), [("a", True), ("b", False), ("", True)])
def test_write_to_ones_own_job_or_to_that_of_a_dead_session(
    conn: psycopg.Connection[Any], job: int, writer: str, alive: bool
) -> None:
    conn.execute(_CLAIMED, [session(conn, "a", alive=alive), 1, job])
    written_by(conn, writer)
    conn.execute(_GIVEN_BACK, [job])
    assert audit.judge(conn).stale == []


def test_attempt_that_ended_twice(conn: psycopg.Connection[Any], job: int) -> None:
    owner = session(conn, "a")
    for token in (1, 2):  # retried
        conn.execute(_CLAIMED, [owner, token, job])
        conn.execute(_GIVEN_BACK, [job])
    assert audit.judge(conn).ended_twice == []
    conn.execute(_CLAIMED, [owner, 2, job])
    conn.execute(_GONE, [job])
    assert audit.judge(conn).ended_twice == [job]


def test_job_that_comes_back_after_its_end(conn: psycopg.Connection[Any], job: int) -> None:
    back = "INSERT INTO background_jobs (id, job_type, data, queue) VALUES (%s, 'brief', '{}', 'default')"
    with conn.transaction():  # as deduplicated ones are given back
        conn.execute(_GONE, [job])
        conn.execute(back, [job])
    assert audit.judge(conn).ended_twice == []
    conn.execute(_GONE, [job])
    written_by(conn, "a")
    conn.execute(back, [job])
    assert audit.judge(conn).ended_twice == [job]
