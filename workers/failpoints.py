"""Places where a crash matters, at which a test can make one happen.

Off, which is always but in the fault harness, each costs a call that does nothing, once for a statement and never for a job.

WORKERS_FAILPOINTS names them with what is to happen and when, in the process that is started with it:
`claimed=kill@3` kills it when it passes `claimed` for the third time; `stop` freezes it instead, `term` tells it to end.

There is one after each commit that another write of the same work may follow, one before each write that begins such work,
and one before the commit of each transaction of several statements: within that, every place is as good as another, as the
server rolls back. There is none where nothing is written (reads, settings, LISTEN), where one transaction is all there is
(`migrate`, `apply_roles`), and in what users enqueue: that is their transaction, or one of its own for all of it.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

__all__ = ["POINTS", "VARIABLE", "armed", "hit"]

VARIABLE = "WORKERS_FAILPOINTS"

#: Every place. What is written is committed, where nothing else is said.
POINTS = (
    "claim",  # a claim is about to be sent
    "scanned",  # a scan of it is committed, another one may follow
    "claimed",  # all are, nobody has its jobs yet
    "claim given back",  # its reply was lost, and what it took is given back
    "complete",  # completions are about to be written
    "completed in part",  # those whose rows nobody has locked, the claims that are over are not forgotten
    "completed",  # they are, nobody knows
    "settle",  # other outcomes are about to be written, a statement for each kind
    "settled archive",  # those of this kind are (of completions, which a batch of a runner never has, there is no point)
    "settled bury",
    "settled wait",
    "settled wait_deduplicated",
    "settled alone",  # one deduplicated job that goes back, as another one has to wait
    "settled",  # all are, and the claims that are over are forgotten; nobody knows
    "transaction begun",  # a transactional job's row is locked, its code has not begun
    "transaction worked",  # its code is done, its end is not written
    "transaction written",  # its end is written, not committed
    "transaction committed",
    "session locked",  # a session has its lock, no row yet
    "session opened",  # it has its lock and its row
    "recover",  # its connection is lost, a new one is about to be made
    "lock retaken",  # that has the lock, the row does not say so
    "recovered",
    "lock taken late",  # somebody else had it until now, the row does not say so
    "maintain",  # a round of housekeeping is about to be made
    "maintained",
    "rescue",  # a dead session was found, nothing is given back yet
    "rescued",  # its ordinary jobs are given back, the deduplicated ones are not
    "given back in part",  # some deduplicated ones are, of a dead session or of this one, as others have to wait
    "rescued all",  # all are, the dead session's claims are still there
    "claims buried",  # those are gone, the dead session is still there
    "removal written",  # it is removed, not committed
    "sessions removed",  # it is gone, nobody was told
    "give back",  # jobs that the session holds without knowing are about to be given back
    "given back",  # the ordinary ones are; or those of a session that ends, not committed
    "given back all",  # all are, their claims are still there
    "claims ended",  # those are gone
    "release",  # what this session holds is about to be given back, as it ends
    "release written",  # it is, and the session is removed, not committed
    "released",
    "enqueue written",  # jobs of one kind are, by the engine itself, not committed
    "enqueued",  # all are committed, nobody knows
    "requeued",  # dead jobs wait again; others may follow
)

_ACTIONS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


def armed(text: str) -> Callable[[str], None]:
    """What `hit` does, as the variable says. Raises ValueError for what it does not understand."""
    plan: dict[str, tuple[signal.Signals, int]] = {}
    for item in filter(None, text.split(",")):
        point, _, rest = item.partition("=")
        action, _, time = rest.partition("@")
        if point not in POINTS or action not in _ACTIONS or not (time or "1").isdecimal():
            raise ValueError(
                f"{VARIABLE}: {item!r} is not POINT=kill@N (or stop, or term); the points are {', '.join(POINTS)}"
            )
        plan[point] = _ACTIONS[action], int(time or 1)
    passed: Counter[str] = Counter()

    def pass_by(point: str) -> None:
        passed[point] += 1
        number, time = plan.get(point, (None, 0))
        if number is not None and passed[point] == time:
            os.kill(os.getpid(), number)

    return pass_by if plan else _nothing


def _nothing(point: str) -> None:
    pass


#: Passes a point.
hit: Callable[[str], None] = armed(os.environ.get(VARIABLE, ""))
