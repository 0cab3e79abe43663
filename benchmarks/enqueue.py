"""Enqueue jobs: one at a time, and in batches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psycopg

from .bench import Noop, Options, fresh_schema
from .report import Result, Sample, summarize

__all__ = ["enqueue", "enqueue_batch"]

_BARE = """
WITH job AS (
    INSERT INTO background_jobs (job_type, queue, data) VALUES ('noop', 'default', %s::jsonb) RETURNING id
) SELECT id, pg_notify('bare', id::text) FROM job
"""
_BARE_BATCH = """
INSERT INTO background_jobs (job_type, queue, data)
SELECT 'noop', 'default', data::jsonb FROM unnest(%s::text[]) AS data RETURNING id
"""
Connection = psycopg.Connection[Any]


def enqueue(options: Options) -> Result:
    """Single enqueues in autocommit, in pairs with a bare INSERT and pg_notify into the same table."""

    def library(conn: Connection, n: int) -> None:
        for number in range(n):
            Noop(number=number).enqueue(conn)

    def bare(conn: Connection, n: int) -> None:
        for number in range(n):
            conn.execute(_BARE, ['{"number":%d}' % number])

    return _pairs("enqueue", options, 500 if options.quick else 2_000, library, bare)


def enqueue_batch(options: Options) -> Result:
    """One batch that returns its ids, in pairs with the bare INSERT ... SELECT FROM unnest."""

    def library(conn: Connection, n: int) -> None:
        Noop.enqueue_batch(conn, [Noop(number=number) for number in range(n)])

    def bare(conn: Connection, n: int) -> None:
        payloads = ['{"number":%d}' % number for number in range(n)]
        conn.execute(_BARE_BATCH, [payloads]).fetchall()

    return _pairs("enqueue_batch", options, 5_000 if options.quick else 20_000, library, bare)


def _pairs(
    name: str,
    options: Options,
    n: int,
    library: Callable[[Connection, int], None],
    bare: Callable[[Connection, int], None],
) -> Result:
    samples: list[Sample] = []
    limits: list[Sample] = []
    for _ in range(3 if options.quick else 5):
        for side, into in ((library, samples), (bare, limits)):
            with fresh_schema(options) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
                side(conn, 50)
                start = time.perf_counter()
                side(conn, n)
                seconds = time.perf_counter() - start
                row = conn.execute("SELECT count(*) FROM background_jobs").fetchone()
                into.append(Sample(per_second=n / seconds, exactly_once=row == (n + 50,)))
    return summarize(name, n, samples, limits)
