"""Enqueue jobs one at a time, each in a transaction of its own: with a notification, and with notifications off."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import psycopg

from .bench import Options, fresh_schema, rows
from .jobs import Noop
from .report import Pair, Result, Sample, summarize

__all__ = [
    "BARE_QUIET",
    "TURN",
    "WARM_UP",
    "Connection",
    "enqueue",
    "enqueue_batch",
    "enqueue_copy",
    "enqueue_quiet",
    "payload",
]

BARE_QUIET = (
    "INSERT INTO background_jobs (job_type, queue, data) VALUES ('noop', 'default', %s::jsonb)"
)
_BARE = BARE_QUIET + " RETURNING id, pg_notify('bare', id::text)"
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
#: Rows that the bare COPY writes at once.
_BLOCK = 1000
#: Calls of one side until it is the other's turn.
TURN = 50


def enqueue(options: Options) -> Result:
    """2,000 calls (500 when quick), in pairs with a bare INSERT and pg_notify into the same table."""

    def bare(conn: Connection, n: int) -> None:
        for number in range(n):
            conn.execute(_BARE, [payload(number)]).fetchall()

    return summarize(Result, "enqueue", *_singles(options, _one_by_one, bare))


def enqueue_quiet(options: Options) -> Result:
    """The same with workers.notify = 'off', in pairs with a plain INSERT, which does not even return the id."""

    def bare(conn: Connection, n: int) -> None:
        for number in range(n):
            conn.execute(BARE_QUIET, [payload(number)])

    runs = _singles(options, _one_by_one, bare, settings="-cworkers.notify=off")
    return summarize(Result, "enqueue_quiet", *runs)


def enqueue_batch(options: Options) -> Result:
    """20,000 jobs (5,000 when quick) in one batch that returns their ids, in pairs with INSERT ... SELECT FROM unnest."""

    def library(conn: Connection, n: int) -> None:
        Noop.enqueue_batch(conn, [Noop(number=number) for number in range(n)])

    def bare(conn: Connection, n: int) -> None:
        # as text, since psycopg takes ten times as long to dump a list; quoted as its dumper would
        payloads = [payload(number).replace('"', '\\"') for number in range(n)]
        array = '{"' + '","'.join(payloads) + '"}'
        conn.execute(_BARE_BATCH, [array]).fetchall()

    return summarize(Result, "enqueue_batch", *_batches(options, library, bare))


def enqueue_copy(options: Options) -> Result:
    """The same number without ids, in pairs with a bare COPY that writes while the server reads."""

    def library(conn: Connection, n: int) -> None:
        Noop.enqueue_batch(conn, [Noop(number=number) for number in range(n)], return_ids=False)

    def bare(conn: Connection, n: int) -> None:
        with conn.cursor().copy(_BARE_COPY) as stream:
            for first in range(0, n, _BLOCK):
                block = range(first, min(n, first + _BLOCK))
                stream.write("".join([f"noop\tdefault\t{payload(i)}\n" for i in block]))

    return summarize(Result, "enqueue_copy", *_batches(options, library, bare))


def payload(number: int) -> str:
    """That of Noop, written by hand."""
    return f'{{"number":{number}}}'


def _one_by_one(conn: Connection, n: int) -> None:
    for number in range(n):
        Noop(number=number).enqueue(conn)


def _singles(
    options: Options, library: Side, bare: Side, settings: str = ""
) -> tuple[int, list[Pair]]:
    """Calls one by one, the sides in turns of fifty; and how many a run has."""
    turns = options.pick(full=40, quick=10, tiny=1)
    return turns * TURN, _pairs(options, (library, bare), turns, TURN, settings)


def _batches(options: Options, library: Side, bare: Side) -> tuple[int, list[Pair]]:
    """One batch a turn; and how many jobs it has."""
    n = options.pick(full=20_000, quick=5_000, tiny=100)
    return n, _pairs(options, (library, bare), options.pick(full=4, quick=4, tiny=2), n)


def _pairs(
    options: Options, sides: tuple[Side, Side], turns: int, n: int, settings: str = ""
) -> list[Pair]:
    """Both sides of a pair are at it in turns of `n` jobs, as the disk is faster now and slower then, within a second."""
    pairs = options.pick(full=15, quick=5, tiny=1)
    return [_pair(options, sides, turns, n, settings) for _ in range(pairs)]


def _pair(options: Options, sides: tuple[Side, Side], turns: int, n: int, settings: str) -> Pair:
    with ExitStack() as stack:
        dsns = [stack.enter_context(fresh_schema(options, settings=settings)) for _ in sides]
        conns = [stack.enter_context(psycopg.connect(dsn, autocommit=True)) for dsn in dsns]
        each = list(zip(sides, conns, strict=True))
        for side, conn in each:
            side(conn, WARM_UP)
        seconds = dict.fromkeys(conns, 0.0)
        for turn in range(turns):
            for side, conn in reversed(each) if turn % 2 else each:
                start = time.perf_counter()
                side(conn, n)
                seconds[conn] += time.perf_counter() - start
        library, bare = (
            Sample(
                per_second=turns * n / seconds[conn],
                exactly_once=rows(dsn) == turns * n + WARM_UP,
            )
            for dsn, conn in zip(dsns, conns, strict=True)
        )
        return library, bare
