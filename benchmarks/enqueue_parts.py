"""Where the time of one enqueue goes that a bare INSERT does not take: the calls by turns, on one connection."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable

import psycopg
from psycopg.rows import tuple_row

from workers._enqueueing import parameters
from workers.connections import ENQUEUE
from workers.job_type import describe

from .bench import Options, fresh_schema, rows
from .enqueue import BARE_QUIET, WARM_UP, Connection, payload
from .jobs import Noop
from .report import Result, Sample, summarize

__all__ = ["EnqueuePartsResult", "enqueue_parts"]


class EnqueuePartsResult(Result, kw_only=True, omit_defaults=True):
    """Medians in microseconds, each added to that of the line before. `bare_us`: the INSERT; `returning_us`: the row that
    comes back; `statement_us`: the library's statement, with its parameters; `encode_us`: the payload, encoded, decoded
    and compared; `rest_us`: the object itself, the checks, the way to the connection."""

    bare_us: float
    returning_us: float
    statement_us: float
    encode_us: float
    rest_us: float


def enqueue_parts(options: Options) -> EnqueuePartsResult:
    """4,000 calls of each kind (500 when quick), notifications off. The limit is the bare INSERT."""
    n = options.pick(full=4_000, quick=500, tiny=20)
    times: dict[str, list[float]] = {name: [] for name in _STEPS}
    with fresh_schema(options) as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        conn.execute("SET workers.notify = 'off'")
        chance, names = random.Random(1), list(_STEPS)
        for number in range(WARM_UP + n):
            chance.shuffle(names)  # none is always after the same one
            for name in names:
                start = time.perf_counter()
                _STEPS[name](conn, number)
                times[name].append(time.perf_counter() - start)
        exactly_once = rows(dsn) == len(names) * (WARM_UP + n)
    medians = [1e6 * statistics.median(times[name][WARM_UP:]) for name in _STEPS]
    added = [medians[0], *(b - a for a, b in itertools.pairwise(medians))]
    samples = [Sample(per_second=1e6 / each, exactly_once=exactly_once) for each in medians]
    fields = EnqueuePartsResult.__struct_fields__[-len(added) :]
    parts = {field: round(us, 1) for field, us in zip(fields, added, strict=True)}
    return summarize(EnqueuePartsResult, "enqueue_parts", n, [(samples[-1], samples[0])], **parts)


def _bare(conn: Connection, number: int) -> None:
    conn.execute(BARE_QUIET, [payload(number)])


def _returning(conn: Connection, number: int) -> None:
    conn.execute(BARE_QUIET + " RETURNING id", [payload(number)]).fetchall()


def _statement(conn: Connection, number: int) -> None:
    _run(conn, payload(number))


def _encoded(conn: Connection, number: int) -> None:
    _run(conn, describe(Noop).codec.encode(Noop(number=number)))


def _library(conn: Connection, number: int) -> None:
    Noop(number=number).enqueue(conn)


def _run(conn: Connection, data: str) -> None:
    given = parameters(Noop, None, None, None, None) | {"data": data}
    conn.cursor(row_factory=tuple_row).execute(ENQUEUE.text, given).fetchall()


#: Each does what the one before does, and something more.
_STEPS: dict[str, Callable[[Connection, int], None]] = {
    "bare": _bare,
    "returning": _returning,
    "statement": _statement,
    "encode": _encoded,
    "rest": _library,
}
