"""Places where a crash matters, at which a test can make one happen.

Off, which is always but in the fault harness, each costs a call that does nothing, once for a statement and never for a job.

WORKERS_FAILPOINTS names them with what is to happen and when, in the process that is started with it:
`claimed=kill@3` kills it when it passes `claimed` for the third time; `stop` freezes it instead, `term` tells it to end.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

__all__ = ["POINTS", "VARIABLE", "armed", "hit"]

VARIABLE = "WORKERS_FAILPOINTS"

#: Every place: before and after what is written, and between a claim and the hand-over of its jobs.
POINTS = (
    "claim",  # a claim is about to be sent
    "claimed",  # it is committed, nobody has its jobs yet
    "complete",  # completions are about to be written
    "completed",  # they are committed, nobody knows
    "settle",  # other outcomes are about to be written
    "settled",
    "transaction begun",  # a transactional job's row is locked, its code has not begun
    "transaction written",  # its end is written, not committed
    "transaction committed",
    "session opened",  # it has its lock and its row
    "maintain",  # a round of housekeeping is about to be made
    "maintained",
    "rescue",  # a dead session was found, nothing is given back yet
    "rescued",  # its ordinary jobs are given back, the deduplicated ones are not
    "rescued all",  # all are, the dead session is still there
    "release",  # what this session holds is about to be given back
    "released",
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
