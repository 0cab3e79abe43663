"""The libraries: where each is installed, how a row is written into its tables, and what a row's state is called there."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from tests.faults.beside.kinds import AGAIN, FAIL, GOOD, Row

__all__ = ["LIBRARIES", "CannotBeWrittenError", "Library"]

SCRIPTS = Path(__file__).with_name("scripts")
OURS = "workers"
_INSIDE = "(in the job)"  # not a column of its own: `columns` has put it where it belongs
_PATIENCE = 120
Columns = dict[str, Any]


class CannotBeWrittenError(Exception):
    """This library's tables have no place for the row, or refuse it."""


class Library(msgspec.Struct, frozen=True):
    """A library. `place` is its interpreter, or its folder for Node, below PEERS_HOME; empty: this interpreter.

    `columns` are the values of a row of `table`, which returns `key`; `states` are the keys and states of all rows, and
    a job in one of the `open` states has not ended.
    """

    name: str
    place: str
    table: str
    key: str
    columns: Callable[[Row], Columns]
    states: str
    open: frozenset[str]
    jobs: dict[str, str] = {}
    attempts: str = ""
    due: str = ""
    second: str = ""

    def missing(self, home: Path | None) -> str:
        """Why it can't be run; empty when it can."""
        if not self.place:
            return ""
        if home is None:
            return "PEERS_HOME is not set"
        return "" if (home / self.place).exists() else f"{self.place} is not in PEERS_HOME"

    def command(self, home: Path | None, *arguments: str) -> list[str]:
        """The command line of its script."""
        if self.place and home is not None and not self.place.startswith("venv"):
            return ["node", str(SCRIPTS / "with_graphile.mjs"), *arguments]
        python = str(home / self.place) if home is not None and self.place else sys.executable
        return [python, str(SCRIPTS / "run.py"), f"with_{self.name}", *arguments]

    def environment(
        self, home: Path | None, dsn: str = "", ran: Path | None = None
    ) -> dict[str, str]:
        """What its script finds there."""
        node = str(home / self.place) if home is not None and self.place else ""
        own = {"BESIDE_DSN": dsn, "BESIDE_RAN": str(ran or ""), "BESIDE_NODE": node}
        return {**os.environ, **own, "PYTHONUNBUFFERED": "1"}

    def call(self, home: Path | None, *arguments: str, dsn: str = "") -> str:
        """Run its script to its end, and return what it printed. Raises RuntimeError with what went wrong."""
        done = subprocess.run(
            self.command(home, *arguments),
            env=self.environment(home, dsn),
            cwd=SCRIPTS,
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
        )
        if done.returncode:
            raise RuntimeError(f"{self.name} {' '.join(arguments)}: {done.stderr.strip()[-2000:]}")
        return done.stdout.strip()

    def write(self, conn: psycopg.Connection[Any], row: Row) -> str:
        """Write the row, and return its key. Raises CannotBeWrittenError."""
        row = msgspec.structs.replace(row, job=self.jobs.get(row.job, row.job))
        try:
            with conn.transaction():
                return self._insert(conn, row)
        except (psycopg.Error, UnicodeDecodeError) as error:
            raise CannotBeWrittenError(str(error).splitlines()[0][:200]) from error

    def _insert(self, conn: psycopg.Connection[Any], row: Row) -> str:
        columns = self.columns(row)
        for value, column in (
            (row.attempts, self.attempts),
            (row.due, self.due),
            (row.second, self.second),
        ):
            if value is None or column == _INSIDE:
                continue
            if not column:
                raise CannotBeWrittenError("it has no such column")
            columns[column] = value
        query = sql.SQL("INSERT INTO {} ({}) VALUES ({}) RETURNING {}::text").format(
            sql.SQL(self.table),
            sql.SQL(", ").join(map(sql.Identifier, columns)),
            sql.SQL(", ").join([sql.Placeholder()] * len(columns)),
            sql.Identifier(self.key),
        )
        found = conn.execute(query, list(columns.values())).fetchone()
        assert found is not None
        return str(found[0])


def _workers(row: Row) -> Columns:
    return {"job_type": row.job, "data": row.payload.decode(), "queue": "default"}


def _pgqueuer(row: Row) -> Columns:
    return {"priority": 0, "status": "queued", "entrypoint": row.job, "payload": row.payload}


def _procrastinate(row: Row) -> Columns:
    return {"queue_name": "default", "task_name": row.job, "args": row.payload.decode()}


def _graphile(row: Row) -> Columns:
    limit = {} if row.attempts is None else {"max_attempts": 2**15 - 1}
    return {"job": row.job, "payload": row.payload.decode(), **limit}


def _oban(row: Row) -> Columns:
    limit = {} if row.attempts is None else {"max_attempts": 2**15 - 1}
    return {"worker": row.job, "args": row.payload.decode(), **limit}


def _chancy(row: Row) -> Columns:
    """The keys are in the order of time, as its own are: claims go by them."""
    limit = {} if row.attempts is None else {"max_attempts": 2**31 - 1}
    ticks = (time.time_ns() // 100) & 0xFFFFFFFFFFFFFF
    key = uuid.UUID(int=(ticks << 68) | (7 << 64) | (2 << 62) | secrets.randbits(62))
    job = {"id": key, "queue": "default", "func": row.job}
    return {**job, "kwargs": row.payload.decode(), **limit}


def _saq(row: Row) -> Columns:
    """Its row is the whole job as JSON, in bytes."""
    key = str(uuid.uuid4())
    more = ""
    if row.attempts is not None:
        more = f', "attempts": {row.attempts}, "retries": {2**32}, "retry_delay": 1.0, "retry_backoff": true'
    if row.second is not None:
        more = f', "meta": {row.second}'
    head = f'{{"function": "{row.job}", "queue": "default", "key": "{key}", "kwargs": '
    job = head.encode() + row.payload + more.encode() + b"}"
    return {"key": key, "queue": "default", "status": "queued", "scheduled": 0, "job": job}


def _dbos(row: Row) -> Columns:
    now = int(time.time() * 1000)
    return {
        "workflow_uuid": str(uuid.uuid4()),
        "status": "ENQUEUED",
        "name": row.job,
        "queue_name": "default",
        "inputs": f'{{"positionalArgs": [], "namedArgs": {row.payload.decode()}}}',
        "serialization": "portable_json",
        "application_version": "v1",
        "created_at": now,
        "updated_at": now,
        "priority": 0,
    }


class _Graphile(Library, frozen=True):
    """Its jobs are added by its own SQL function, and changed afterwards where that has no parameter for it."""

    def _insert(self, conn: psycopg.Connection[Any], row: Row) -> str:
        if row.second is not None:
            raise CannotBeWrittenError("it has no such column")
        query = """SELECT id::text FROM graphile_worker.add_job(
            identifier => %(job)s, payload => %(payload)s, max_attempts => %(max_attempts)s::int4::int2)"""
        found = conn.execute(query, {"max_attempts": None, **self.columns(row)}).fetchone()
        assert found is not None
        for column, value in (("attempts", row.attempts), ("run_at", row.due)):
            if value is not None:
                change = sql.SQL("UPDATE graphile_worker._private_jobs SET {} = %s WHERE id = %s")
                conn.execute(change.format(sql.Identifier(column)), [value, found[0]])
        return str(found[0])


def _named(module: str) -> dict[str, str]:
    return {GOOD: f"{module}.good", FAIL: f"{module}.fails", AGAIN: f"{module}.fails"}


LIBRARIES = {
    library.name: library
    for library in (
        Library(
            OURS, "", "background_jobs", "id", _workers,
            """SELECT id::text, CASE WHEN session_id IS NOT NULL THEN 'running' WHEN retries > 0 THEN 'waits for a retry'
                   ELSE 'waits' END FROM background_jobs UNION ALL SELECT id::text, 'dead' FROM dead_jobs""",
            frozenset({"running", "waits", "waits for a retry"}),
            attempts="retries", due="run_at",
        ),
        Library(
            "pgqueuer", "venv/pgqueuer/bin/python", "pgqueuer", "id", _pgqueuer,
            """SELECT id::text, status::text FROM pgqueuer UNION ALL
               (SELECT DISTINCT ON (job_id) job_id::text, 'deleted: ' || status FROM pgqueuer_log
                WHERE job_id NOT IN (SELECT id FROM pgqueuer) ORDER BY job_id, id DESC)""",
            frozenset({"queued", "picked"}),
            attempts="attempts", due="execute_after", second="headers",
        ),
        Library(
            "procrastinate", "venv/procrastinate/bin/python", "procrastinate_jobs", "id", _procrastinate,
            "SELECT id::text, status::text FROM procrastinate_jobs", frozenset({"todo", "doing"}),
            attempts="attempts", due="scheduled_at",
        ),
        _Graphile(
            "graphile", "graphile", "", "id", _graphile,
            """SELECT id::text, CASE WHEN locked_at IS NOT NULL THEN 'locked' WHEN attempts >= max_attempts THEN 'failed'
                   WHEN last_error IS NOT NULL THEN 'waits for a retry' ELSE 'waits' END
               FROM graphile_worker._private_jobs""",
            frozenset({"locked", "waits for a retry", "waits"}),
        ),
        Library(
            "oban", "venv/oban/bin/python", "oban_jobs", "id", _oban,
            "SELECT id::text, state::text FROM oban_jobs", frozenset({"available", "executing", "retryable"}),
            jobs=_named("with_oban"), attempts="attempt", due="scheduled_at", second="meta",
        ),
        Library(
            "chancy", "venv/chancy/bin/python", "chancy_jobs", "id", _chancy,
            "SELECT id::text, state::text FROM chancy_jobs", frozenset({"pending", "running", "retrying"}),
            jobs=_named("with_chancy"), attempts="attempts", due="scheduled_at", second="meta",
        ),
        Library(
            "saq", "venv/saq/bin/python", "saq_jobs", "key", _saq,
            "SELECT key, status FROM saq_jobs", frozenset({"new", "queued", "active", "aborting"}),
            attempts=_INSIDE, second=_INSIDE,
        ),
        Library(
            "dbos", "venv/dbos/bin/python", "dbos.workflow_status", "workflow_uuid", _dbos,
            "SELECT workflow_uuid, status FROM dbos.workflow_status", frozenset({"ENQUEUED", "PENDING"}),
            attempts="recovery_attempts",
        ),
    )
}  # fmt: skip
