"""A transactional job that is told to stop while its commit is under way. Rule 16."""

from __future__ import annotations

import psycopg
import pytest

from tests.conftest import AsyncPool
from tests.helpers.effects import EFFECTS, INSERT
from tests.helpers.running import World, drain, listening_to
from workers import BackgroundJob, current_job
from workers.telemetry import JobFinished

#: Its row is checked when the transaction commits, which takes longer than the job may.
SLOW_COMMIT = """
CREATE TABLE effects (job bigint);
CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.8); RETURN NULL; END $$;
CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION slow()
"""


class SlowCommit(BackgroundJob[World]):
    transactional = True
    timeout = 0.4

    async def run(self, ctx: World) -> None:
        await current_job().connection.execute(INSERT, [current_job().id])


class SlowCommitInThread(BackgroundJob[World]):
    transactional = True
    timeout = 0.4

    def run(self, ctx: World) -> None:
        current_job().connection.execute(INSERT, [current_job().id])


@pytest.mark.parametrize("kind", [SlowCommit, SlowCommitInThread])
async def test_a_commit_is_not_broken_off(
    pool: AsyncPool,
    conn: psycopg.Connection,
    kind: type[SlowCommit] | type[SlowCommitInThread],
) -> None:
    """The job's code has ended in time: that its commit has not is no reason to run it again."""
    conn.execute(SLOW_COMMIT)
    job_id = kind().enqueue(conn)
    with listening_to(JobFinished) as finished:
        await drain(pool, kind)
    assert conn.execute(EFFECTS).fetchall() == [(job_id,)]
    assert conn.execute("SELECT * FROM background_jobs").fetchall() == []
    assert [type(event.outcome).__name__ for event in finished] == ["Completed"]
