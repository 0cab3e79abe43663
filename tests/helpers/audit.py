"""What became of every row of the job table, as the database itself saw it: who claimed it, gave it back, deleted it.

A trigger writes each change down, in the transaction that makes it. So what the histories of the processes can only suggest
is known: whether a claim was taken from somebody who had it, and whether anybody wrote to a row that was another's by then.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg
from psycopg import sql
from psycopg.rows import class_row

__all__ = ["WRITER", "Change", "Findings", "install", "judge", "remove"]

#: The setting that says on whose behalf a connection writes: a process of the test, by name. Empty: the test itself.
WRITER = "faults.writer"

# `owner`: whose claim it was, unless that session was dead by then and its jobs were anybody's to give back. The names of
# those alive are kept apart: with worker_sessions taken after background_jobs by every statement, where the library takes it
# before, `migrate` could hardly take both from runners at work.
_INSTALL = """
CREATE TABLE audit (
    number      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    xid         xid8 NOT NULL DEFAULT pg_current_xact_id(),
    job         bigint NOT NULL,
    change      text NOT NULL,
    old_session bigint,
    old_token   bigint,
    new_session bigint,
    new_token   bigint,
    owner       text,
    writer      text
);

CREATE TABLE audit_sessions (id bigint PRIMARY KEY, name text NOT NULL);
INSERT INTO audit_sessions SELECT id, name FROM worker_sessions WHERE alive;

CREATE FUNCTION audit_sessions() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema} AS $$
BEGIN
    IF TG_OP = 'DELETE' OR NOT NEW.alive THEN
        DELETE FROM audit_sessions WHERE id = OLD.id;
    ELSIF TG_OP = 'INSERT' THEN
        INSERT INTO audit_sessions VALUES (NEW.id, NEW.name);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER audit AFTER INSERT OR DELETE OR UPDATE OF alive ON worker_sessions
    FOR EACH ROW EXECUTE FUNCTION audit_sessions();

CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = {schema} AS $$
DECLARE
    owner text;
    writer text := current_setting('faults.writer', true);
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO audit (job, change, new_session, new_token, writer)
        VALUES (NEW.id, 'insert', NEW.session_id, NEW.claim_token, writer);
        RETURN NULL;
    END IF;
    SELECT name INTO owner FROM audit_sessions WHERE id = OLD.session_id;
    IF TG_OP = 'DELETE' THEN
        INSERT INTO audit (job, change, old_session, old_token, owner, writer)
        VALUES (OLD.id, 'delete', OLD.session_id, OLD.claim_token, owner, writer);
    ELSE
        INSERT INTO audit (job, change, old_session, old_token, new_session, new_token, owner, writer)
        VALUES (NEW.id, 'update', OLD.session_id, OLD.claim_token, NEW.session_id, NEW.claim_token, owner, writer);
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER audit AFTER INSERT OR DELETE OR UPDATE OF session_id, claim_token ON background_jobs
    FOR EACH ROW EXECUTE FUNCTION audit();
"""

_TAKEN = """
SELECT * FROM audit
WHERE change = 'update' AND old_session IS NOT NULL AND new_session IS NOT NULL
    AND (old_session, old_token) IS DISTINCT FROM (new_session, new_token)
ORDER BY number
"""
_STALE = """
SELECT * FROM audit WHERE old_session IS NOT NULL AND owner IS NOT NULL AND writer <> '' AND writer <> owner
ORDER BY number
"""
# An attempt ends once: its row is deleted or given up. After its end only the test brings a job back, a dead one. (What is
# deduplicated is given back by taking it out and putting it in again, under its own id, in one transaction.)
_ENDED_TWICE = """
WITH gone AS (
    SELECT * FROM audit AS gone
    WHERE change = 'delete' AND NOT EXISTS (
        SELECT FROM audit AS back WHERE back.job = gone.job AND back.change = 'insert' AND back.xid = gone.xid
    )
)
SELECT job FROM audit WHERE old_session IS NOT NULL AND new_session IS NULL
GROUP BY job, old_session, old_token HAVING count(*) > 1
UNION
SELECT later.job FROM gone JOIN audit AS later ON later.job = gone.job AND later.number > gone.number
WHERE later.change <> 'insert' AND NOT EXISTS (
    SELECT FROM audit AS back
    WHERE back.job = gone.job AND back.change = 'insert' AND back.number BETWEEN gone.number AND later.number
)
UNION
SELECT back.job FROM gone JOIN audit AS back ON back.job = gone.job AND back.number > gone.number
WHERE back.change = 'insert' AND back.writer <> ''
ORDER BY job
"""
_OF_JOBS = "SELECT * FROM audit WHERE job = ANY(%s) ORDER BY number"


@dataclass(frozen=True, slots=True)
class Change:
    """A row of the audit."""

    number: int
    at: datetime
    xid: int
    job: int
    change: str
    old_session: int | None
    old_token: int | None
    new_session: int | None
    new_token: int | None
    owner: str | None
    writer: str | None


@dataclass(frozen=True, slots=True)
class Findings:
    """What must not be. `taken` (I3): a claim on a job that somebody had. `stale` (I4): a write to a job that was another
    runner's by then. `ended_twice` (I5): jobs of which one attempt ended more than once, deleted and retried for example.
    `changes`: all of those jobs."""

    taken: list[Change]
    stale: list[Change]
    ended_twice: list[int]
    changes: list[Change]


def install(conn: psycopg.Connection[Any], schema: str) -> None:
    """Audit the job table of `schema`, which is the connection's own."""
    conn.execute(sql.SQL(_INSTALL).format(schema=sql.Identifier(schema)))


def remove(conn: psycopg.Connection[Any]) -> None:
    """Take it away again."""
    for table in ("background_jobs", "worker_sessions"):
        conn.execute(f"DROP TRIGGER audit ON {table}")
    conn.execute("DROP FUNCTION audit(), audit_sessions(); DROP TABLE audit, audit_sessions")


def judge(conn: psycopg.Connection[Any]) -> Findings:
    """Look through what was written down."""
    with conn.cursor(row_factory=class_row(Change)) as cursor:
        # only now: it is not to slow down those who write
        conn.execute("CREATE INDEX IF NOT EXISTS audit_job ON audit (job); ANALYZE audit")
        taken = cursor.execute(_TAKEN).fetchall()
        stale = cursor.execute(_STALE).fetchall()
        ended_twice = [job for (job,) in conn.execute(_ENDED_TWICE)]
        jobs = {*ended_twice, *(change.job for change in [*taken, *stale])}
        changes = cursor.execute(_OF_JOBS, [list(jobs)]).fetchall()
    return Findings(taken, stale, ended_twice, changes)
