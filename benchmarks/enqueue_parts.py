"""Where the time of one enqueue goes that a bare INSERT does not take: all by turns, like the two of `enqueue_quiet`."""

from __future__ import annotations

import itertools
import random
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack

import psycopg
from psycopg.rows import tuple_row

from workers._enqueueing import parameters
from workers.connections import ENQUEUE
from workers.job_type import describe

from .bench import Options, fresh_schema, rows
from .enqueue import BARE_QUIET, TURN, WARM_UP, Connection, payload
from .jobs import Noop
from .report import Result, Sample, summarize

__all__ = ["EnqueuePartsResult", "enqueue_parts"]


#: The library's statement without what it asks and announces.
_UNASKED = ENQUEUE.text.partition("RETURNING")[0] + "RETURNING currval('background_jobs_id_seq')"


class EnqueuePartsResult(Result, kw_only=True, omit_defaults=True):
    """Medians in microseconds, each added to that of the line before. `bare_us`: the INSERT; `returning_us`: the row that
    comes back; `parameters_us`: job type, queue and priority as parameters; `question_us`: whether to announce the job;
    `encode_us`: the payload, encoded and compared; `rest_us`: the object itself, the checks, the way to the connection.
    `returning_ratio`: what would be left of the bare rate if nothing but the id came back."""

    bare_us: float
    returning_us: float
    parameters_us: float
    question_us: float
    encode_us: float
    rest_us: float
    returning_ratio: float


def enqueue_parts(options: Options) -> EnqueuePartsResult:
    """200 turns of 50 calls of each kind (20 when quick), notifications off. The limit is the bare INSERT."""
    turns = options.pick(full=200, quick=20, tiny=1)
    with ExitStack() as stack:
        dsn = stack.enter_context(fresh_schema(options, settings="-cworkers.notify=off"))
        sides = {
            step: stack.enter_context(psycopg.connect(dsn, autocommit=True)) for step in _STEPS
        }
        for step, conn in sides.items():
            for number in range(WARM_UP):
                step(conn, number)
        times: dict[Step, list[float]] = {step: [] for step in _STEPS}
        chance, order = random.Random(1), list(_STEPS)
        for _ in range(turns):
            chance.shuffle(order)  # none is always after the same one
            for step in order:
                times[step].append(_turn(step, sides[step]))
        exactly_once = rows(dsn) == len(_STEPS) * (WARM_UP + turns * TURN)
    medians = [1e6 * statistics.median(times[step]) for step in _STEPS]
    added = [medians[0], *(b - a for a, b in itertools.pairwise(medians))]
    samples = [Sample(per_second=1e6 / each, exactly_once=exactly_once) for each in medians]
    fields = [name for name in EnqueuePartsResult.__struct_fields__ if name.endswith("_us")]
    parts = {field: round(us, 1) for field, us in zip(fields, added, strict=True)}
    returning_ratio = round(medians[0] / medians[1], 3)
    return summarize(
        EnqueuePartsResult,
        "enqueue_parts",
        turns * TURN,
        [(samples[-1], samples[0])],
        **parts,
        returning_ratio=returning_ratio,
    )


def _turn(step: Step, conn: Connection) -> float:
    """Seconds a call."""
    start = time.perf_counter()
    for number in range(TURN):
        step(conn, number)
    return (time.perf_counter() - start) / TURN


def _bare(conn: Connection, number: int) -> None:
    conn.execute(BARE_QUIET, [payload(number)])


def _returning(conn: Connection, number: int) -> None:
    conn.execute(BARE_QUIET + " RETURNING id", [payload(number)]).fetchall()


def _parameters(conn: Connection, number: int) -> None:
    _run(conn, _UNASKED, payload(number))


def _statement(conn: Connection, number: int) -> None:
    _run(conn, ENQUEUE.text, payload(number))


def _encoded(conn: Connection, number: int) -> None:
    _run(conn, ENQUEUE.text, describe(Noop).codec.encode(Noop(number=number)))


def _library(conn: Connection, number: int) -> None:
    Noop(number=number).enqueue(conn)


def _run(conn: Connection, text: str, data: str) -> None:
    given = parameters(Noop, None, None, None, None) | {"data": data}
    conn.cursor(row_factory=tuple_row).execute(text, given).fetchall()


Step = Callable[[Connection, int], None]
#: Each does what the one before does, and something more.
_STEPS: tuple[Step, ...] = (_bare, _returning, _parameters, _statement, _encoded, _library)
