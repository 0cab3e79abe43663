"""Many jobs at once into a psycopg connection by COPY: the fastest way in, for jobs whose ids nobody wants.

Payloads are encoded while the server takes in those before, so neither waits for the other, and a generator of a million
jobs needs the memory of a few hundred. A payload that is refused ends the COPY: its savepoint is rolled back, nothing of
the batch is written, and the caller's transaction goes on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from psycopg import AsyncCursor, Cursor
from psycopg.rows import tuple_row

if TYPE_CHECKING:
    from psycopg import AsyncConnection, Connection

__all__ = ["copy", "copy_async"]

#: Rows in one message.
_ROWS = 150

#: When they are due, by the database's clock; and where they will stand, at the lowest. As text that every session reads the
#: same: other styles than ISO name the time zone in a way that not every server understands, or takes for another one.
_BEFORE = """
SELECT to_char(
    workers_run_at(%(run_at)s::timestamptz, %(delay)s::float8) AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US"+00"'
), nextval('background_jobs_position_seq')
"""
_AFTER = "SELECT workers_notify(%(queue)s::text, %(priority)s::smallint, %(position)s::bigint)"


def copy(conn: Connection[Any], parameters: dict[str, Any]) -> None:
    """Write the payloads `parameters["data"]`, all or none, with the other parameters of an enqueue statement."""
    cursor = Cursor(conn, row_factory=tuple_row)
    run_at, position = _found(cursor.execute(_BEFORE, parameters).fetchone())
    command, row = _form(parameters, run_at)
    with conn.transaction():
        with cursor.copy(command) as stream:
            for block in _blocks(parameters["data"], row):
                stream.write(block)
        if run_at is None and cursor.rowcount:
            cursor.execute(_AFTER, parameters | {"position": position})


async def copy_async(conn: AsyncConnection[Any], parameters: dict[str, Any]) -> None:
    """The same on an asynchronous connection."""
    cursor = AsyncCursor(conn, row_factory=tuple_row)
    run_at, position = _found(await (await cursor.execute(_BEFORE, parameters)).fetchone())
    command, row = _form(parameters, run_at)
    async with conn.transaction():
        async with cursor.copy(command) as stream:
            for block in _blocks(parameters["data"], row):
                await stream.write(block)
        if run_at is None and cursor.rowcount:
            await cursor.execute(_AFTER, parameters | {"position": position})


def _found(row: tuple[Any, ...] | None) -> tuple[str | None, int]:
    assert row is not None  # noqa: S101 - for the type checker
    return row[0], row[1]


def _form(parameters: dict[str, Any], run_at: str | None) -> tuple[str, str]:
    """The command, and how each row begins. What has the column's default is left out: there is less to read."""
    values = {"job_type": parameters["job_type"], "queue": parameters["queue"]}
    if parameters["priority"]:
        values["priority"] = str(parameters["priority"])
    if run_at is not None:
        values["run_at"] = run_at
    command = f"COPY background_jobs ({', '.join(values)}, data) FROM STDIN"
    return command, "".join([f"{value}\t" for value in values.values()])


def _blocks(texts: Iterable[str], row: str) -> Iterator[str]:
    """The rows in COPY's text format, many at a time. JSON has no tabs or line ends of its own, but it has backslashes; what
    stands before it in the row has none."""
    rest = iter(texts)
    while block := [row + text for text in islice(rest, _ROWS)]:
        yield ("\n".join(block) + "\n").replace("\\", "\\\\")
