"""What a runner costs while there is nothing to do: statements, counted by the server, and processor time.

Each runner has a database of its own, whose committed and rolled back transactions the server counts; all that an idle
runner sends are single statements in autocommit. A second runner idles for a shorter time, so that what it takes to start
and to end, which both do, can be subtracted: the difference is idling alone. What is counted along, and is no statement: the
transaction in which the server hands the listener one of its probes.
"""

from __future__ import annotations

import time
from contextlib import ExitStack

import psycopg
from psycopg.conninfo import conninfo_to_dict

from workers.runtime.session import PROBE_EVERY

from .bench import Options, fresh_database
from .child import Order
from .children import Finding, run_children
from .report import Result, Sample, summarize

__all__ = ["IdleResult", "idle"]

_QUEUES = 2
_POLLS_PER_SECOND = 1.0  # the default poll_interval; the jitter on top of it only makes them fewer
_MAINTENANCE_PER_SECOND = 1.0
_PROBES_PER_SECOND = 1 / PROBE_EVERY
_COUNTS = "SELECT numbackends, xact_commit + xact_rollback FROM pg_stat_database WHERE datname = %s"


class IdleResult(Result, kw_only=True, omit_defaults=True):
    """`statements_per_poll`: per poll interval and queue, beside one maintenance statement a second."""

    statements_per_poll: float = 0.0
    cpu_percent: float = 0.0


def idle(options: Options) -> IdleResult:
    """Over a minute (5 s when quick), two queues. `per_second`: transactions; the limit is what is allowed; `n`: seconds."""
    seconds = options.pick(full=60.0, quick=5.0, tiny=1.5)
    # until psycopg has prepared the statements; and it ends in the middle between two polls
    short = options.pick(full=8.1, quick=7.1, tiny=0.1)
    with ExitStack() as stack:
        # at the same time: they have nothing to do, and so do not disturb each other
        dsns = [stack.enter_context(fresh_database(options)) for _ in range(2 * options.pairs)]
        orders = [
            Order(task="idle", dsn=dsn, queues=_QUEUES, seconds=length, uvloop=options.uvloop)
            for dsn, length in zip(dsns, [short + seconds, short] * options.pairs, strict=True)
        ]
        findings = run_children(orders)
        sent = [_transactions(options, dsn) for dsn in dsns]
    rates = [
        (sent[i] - sent[i + 1]) / (_length(findings[i]) - _length(findings[i + 1]))
        for i in range(0, len(dsns), 2)
    ]
    polls = _QUEUES * _POLLS_PER_SECOND
    besides = _MAINTENANCE_PER_SECOND + _PROBES_PER_SECOND
    allowed = Sample(per_second=besides + polls, exactly_once=True)
    pairs = [(Sample(per_second=rate, exactly_once=True), allowed) for rate in rates]
    shares = sorted(finding.report.cpu_share for finding in findings[::2])
    result = summarize(IdleResult, "idle", int(seconds), pairs)
    result.statements_per_poll = round((result.per_second - besides) / polls, 3)
    result.cpu_percent = round(100 * shares[len(shares) // 2], 3)
    return result


def _length(finding: Finding) -> float:
    return finding.report.ended - finding.report.started


def _transactions(options: Options, dsn: str) -> int:
    """How many there were in a database that is no longer in use: at its end a connection reports what it has counted."""
    database = conninfo_to_dict(dsn)["dbname"]
    with psycopg.connect(options.dsn, autocommit=True) as conn:
        while True:
            row = conn.execute(_COUNTS, [database]).fetchone()
            assert row is not None
            if row[0] == 0:
                return int(row[1])
            time.sleep(0.01)
