"""Enqueue jobs one at a time, each in a transaction of its own: with a notification, and with notifications off."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg

from .bench import Options, fresh_schema, interleave, rows
from .jobs import Noop
from .report import Pair, Result, Sample, summarize

__all__ = [
    "BARE_QUIET",
    "WARM_UP",
    "Connection",
    "enqueue",
    "enqueue_batch",
    "enqueue_copy",
    "enqueue_quiet",
    "payload",
]

_BARE = """
WITH job AS (
    INSERT INTO background_jobs (job_type, queue, data) VALUES ('noop', 'default', %s::jsonb) RETURNING id
) SELECT id, pg_notify('bare', id::text) FROM job
"""
BARE_QUIET = (
    "INSERT INTO background_jobs (job_type, queue, data) VALUES ('noop', 'default', %s::jsonb)"
)
_BARE_BATCH = """
INSERT INTO background_jobs (job_type, queue, data)
SELECT 'noop', 'default', data::jsonb FROM unnest(%s::text[]) AS data RETURNING id
"""
_BARE_COPY = "COPY background_jobs (job_type, queue, data) FROM STDIN"
Connection = psycopg.Connection[Any]
#: Enqueues that many jobs.
Side = Callable[[Connection, int], None]
#: Until psycopg has prepared the statement, and the server has its plan.
WARM_UP = 50


def enqueue(options: Options) -> Result:
    """2,000 calls (500 when quick), in pairs with a bare INSERT and pg_notify into the same table."""

    def bare(conn: Connection, n: int) -> None:
        for number in range(n):
            conn.execute(_BARE, [payload(number)]).fetchall()

    n = options.pick(full=2_000, quick=500, tiny=50)
    return summarize(Result, "enqueue", n, _pairs(options, n, _one_by_one, bare))


def enqueue_quiet(options: Options) -> Result:
    """The same after SET workers.notify = 'off', in pairs with a plain INSERT, which does not even return the id."""

    def library(conn: Connection, n: int) -> None:
        conn.execute("SET workers.notify = 'off'")
        _one_by_one(conn, n)

    def bare(conn: Connection, n: int) -> None:
        for number in range(n):
            conn.execute(BARE_QUIET, [payload(number)])

    n = options.pick(full=2_000, quick=500, tiny=50)
    return summarize(Result, "enqueue_quiet", n, _pairs(options, n, library, bare))


def enqueue_batch(options: Options) -> Result:
    """20,000 jobs (5,000 when quick) in one batch that returns their ids, in pairs with INSERT ... SELECT FROM unnest."""

    def library(conn: Connection, n: int) -> None:
        Noop.enqueue_batch(conn, [Noop(number=number) for number in range(n)])

    def bare(conn: Connection, n: int) -> None:
        payloads = [payload(number) for number in range(n)]
        conn.execute(_BARE_BATCH, [payloads]).fetchall()

    n = options.pick(full=20_000, quick=5_000, tiny=100)
    return summarize(Result, "enqueue_batch", n, _pairs(options, n, library, bare))


def enqueue_copy(options: Options) -> Result:
    """The same number without ids, in pairs with a bare COPY of payloads that are made beforehand."""

    def library(conn: Connection, n: int) -> None:
        Noop.enqueue_batch(conn, [Noop(number=number) for number in range(n)], return_ids=False)

    def bare(conn: Connection, n: int) -> None:
        text = "".join([f"noop\tdefault\t{payload(number)}\n" for number in range(n)])
        with conn.cursor().copy(_BARE_COPY) as stream:
            stream.write(text)

    n = options.pick(full=20_000, quick=5_000, tiny=100)
    return summarize(Result, "enqueue_copy", n, _pairs(options, n, library, bare))


def payload(number: int) -> str:
    """That of Noop, written by hand."""
    return f'{{"number":{number}}}'


def _one_by_one(conn: Connection, n: int) -> None:
    for number in range(n):
        Noop(number=number).enqueue(conn)


def _pairs(options: Options, n: int, library: Side, bare: Side) -> list[Pair]:
    def measured(side: Side) -> Sample:
        with fresh_schema(options) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
            side(conn, WARM_UP)
            start = time.perf_counter()
            side(conn, n)
            seconds = time.perf_counter() - start
            return Sample(per_second=n / seconds, exactly_once=rows(dsn) == n + WARM_UP)

    # these runs are short: the median of more of them is steadier
    pairs = options.pick(full=15, quick=5, tiny=1)
    return interleave(pairs, lambda: measured(library), lambda: measured(bare))
