"""Where the next claim of a queue starts to look. Pure: it is told what was claimed, and says how to scan next.

While some transaction holds an old snapshot, the index entries of deleted jobs can't be removed and a scan from the start
walks all of them. So a claim starts, per priority, where the last one ended. That is a hint and never a truth: positions are
drawn before they are committed, so a late commit lands behind the hint. Three things find such rows:

* a notification below the hint pulls it back;
* once a second a trailing scan starts where the hint stood 3 s ago;
* a thorough scan of the whole queue runs at the start, when asked for, when notifications may have been missed, and
  otherwise as often as costs 2% of the time, and at least each 30 s; and when nothing is left where the hints point, but
  the last thorough scan ended at its limit.

On a healthy server a thorough scan takes about a millisecond, so that nearly every claim after a pause is one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Sequence
from enum import Enum

import msgspec

from ...job import ClaimedJob

__all__ = ["Plan", "ScanHints", "ScanKind"]

#: Priorities with a hint of their own; a thorough scan finds the rest.
MAX_PRIORITIES = 16
TRAIL_EVERY, TRAIL_BEHIND = 1.0, 3.0
#: A thorough scan waits this many times its own last duration: 2% of the time.
THOROUGH_SHARE = 50
#: Seconds that it waits at most: what lies where no hint points, and was not announced, waits as long.
MAX_PAUSE = 30.0
#: Seconds from which on one is not waited for with jobs in hand.
COSTLY = 0.02
#: A hint is worth its while where a scan from there takes less than this part of a thorough one.
WORTH_A_HINT = 5
#: The last position there can be.
_LAST = 2**63 - 1


class ScanKind(Enum):
    """How a claim looks for rows."""

    HINTED = "hinted"
    TRAILING = "trailing"
    THOROUGH = "thorough"


class Plan(msgspec.Struct, frozen=True):
    """A scan: for each priority, highest first, the position to start at (nothing for a thorough one)."""

    kind: ScanKind
    priorities: list[int] = []
    positions: list[int] = []


class ScanHints:
    """The hints of one queue. Times are seconds of any monotonic clock."""

    def __init__(self) -> None:
        self._next: dict[
            int, int
        ] = {}  # priority -> position to start at; least recently used first
        self._history: deque[tuple[float, dict[int, int]]] = deque()
        self._next_trailing = 0.0
        self._next_thorough = 0.0
        #: A thorough scan is owed, whatever it costs: it was never made, or it broke off.
        self._owed = True
        self._under_way = False
        #: What was noticed while a scan was on its way, which may not have seen it: priority -> lowest position.
        self._meanwhile: dict[int, int] = {}
        #: Of the last thorough scan; of the first one no more is believed than this.
        self._duration = COSTLY
        self._believe_from = float("-inf")
        self._barren = False  # the last hinted scan took long, and found less than it was to
        self._cut = (
            False  # the last thorough scan ended at its limit: of lower priorities it saw nothing
        )

    def plan(self, now: float, *, thorough: bool = False) -> Plan:
        """How to scan now. One plan at a time: it is over when `claimed` was told, or when the next one is made."""
        self._meanwhile.clear()
        if (
            thorough
            or self._owed
            or self._under_way
            or now >= self._next_thorough
            or not self._next
        ):
            self._owed, self._under_way = False, True
            return Plan(ScanKind.THOROUGH)
        start, kind = self._next, ScanKind.HINTED
        if now >= self._next_trailing:
            self._next_trailing = now + TRAIL_EVERY
            start, kind = self._trail(now), ScanKind.TRAILING
        priorities = sorted(start, reverse=True)
        return Plan(kind, priorities, [start[priority] for priority in priorities])

    def claimed(
        self,
        plan: Plan,
        jobs: Sequence[tuple[ClaimedJob, int]],
        limit: int,
        now: float,
        duration: float,
    ) -> bool:
        """Take note of what a scan found: jobs with their positions, in claim order.

        True: jobs may wait where neither this scan nor the last thorough one has looked; a thorough one must follow.
        """
        short = len(jobs) < limit
        if plan.kind is ScanKind.THOROUGH:
            self._under_way = False
            self._next_thorough = now + self._pause(now, duration)
            self._duration = duration
            self._cut = not short
        # positions rise within a priority: the last one counts
        ends = {job.priority: min(position + 1, _LAST) for job, position in jobs}
        for priority, end in ends.items():
            self._next[priority] = max(end, self._next.pop(priority, 0))
        if jobs and not short and plan.kind is not ScanKind.HINTED:
            # it stopped behind the hint, where more may wait
            last = jobs[-1][0].priority
            self._next[last] = ends[last]
        costly = duration >= max(COSTLY, self._duration / WORTH_A_HINT)
        if plan.kind is ScanKind.HINTED:
            if short and costly and self._barren:  # one may have waited for a lock
                self._drop_barren(plan, ends)
            self._barren = short and costly
        if self._meanwhile:
            self._pull_back({(job.priority, position) for job, position in jobs})
        _trim(self._next, MAX_PRIORITIES)
        return short and self._cut

    def _drop_barren(self, plan: Plan, ends: Collection[int]) -> None:
        """What is there is not for this runner, jobs of other types above all, and was walked in vain: it is left to the
        thorough scans. One hint stays, or each scan would be one."""
        for priority in plan.priorities:
            if priority not in ends and len(self._next) > 1:
                self._next.pop(priority, None)

    def _pause(self, now: float, duration: float) -> float:
        """Seconds until the next thorough scan, after one that took `duration`.

        That may be a wait for a lock, or for a server that stood still. So one that took longer than the one before counts
        as that did, but not again before its own pause would be over: short and long ones may take turns.
        """
        pause = min(THOROUGH_SHARE * duration, MAX_PAUSE)
        if duration > self._duration and now >= self._believe_from:
            self._believe_from = now + pause
            pause = min(THOROUGH_SHARE * self._duration, MAX_PAUSE)
        return pause

    def noticed(self, priority: int, position: int) -> None:
        """Jobs of `priority` became available, the lowest at `position`."""
        for lowest in (self._next, self._meanwhile):
            known = lowest.get(priority)
            if known is None or position < known:
                lowest[priority] = position
                # anybody may announce jobs of any priority, and a scan is to see first which of them there are
                _trim(lowest, 4 * MAX_PRIORITIES)

    def _pull_back(self, found: set[tuple[int, int]]) -> None:
        """The scan that is over began, maybe, before what was noticed since was there."""
        for priority, position in self._meanwhile.items():
            if (priority, position) not in found:
                self._next[priority] = min(position, self._next.get(priority, position))

    @property
    def is_costly(self) -> bool:
        """Whether the last thorough scan took long."""
        return self._duration >= COSTLY

    def missed(self) -> None:
        """Jobs may have become available of which nothing was heard: no hint of what is heard next may hide them."""
        self._owed = True

    def _trail(self, now: float) -> dict[int, int]:
        """Where the hints stood TRAIL_BEHIND ago; remembers where they stand."""
        self._history.append((now, dict(self._next)))
        while len(self._history) > 1 and self._history[1][0] <= now - TRAIL_BEHIND:
            self._history.popleft()
        past = self._history[0][1]
        return {
            priority: min(past.get(priority, hint), hint) for priority, hint in self._next.items()
        }


def _trim(hints: dict[int, int], most: int) -> None:
    """The one that was used longest ago makes way."""
    while len(hints) > most:
        del hints[next(iter(hints))]
