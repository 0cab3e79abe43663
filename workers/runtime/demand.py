"""How many jobs a queue should hold in advance. Pure.

A claim costs a round trip, so short jobs are claimed by the hundred; a long one that is claimed in advance waits here while
another runner could start it, so none is. What decides is the p95 of the recent run times: as many jobs are held as the
workers start within HORIZON.
"""

from __future__ import annotations

__all__ = ["HORIZON", "MIN_RUNS", "MOST_PREFETCH", "Demand"]

HORIZON = 0.05
#: One claim; and two for jobs so short that one worker alone, as it is with those that never wait, gets through them in
#: QUICKLY seconds: then a claim is on its way while another is worked through, and a drain takes a seventh less.
MAX_PREFETCH, MOST_PREFETCH, QUICKLY = 500, 1000, 0.25
#: Nothing is claimed in advance before this many runs are known.
MIN_RUNS = 20
_WINDOW = 128


class Demand:
    """The prefetch of one queue."""

    def __init__(self, num_workers: int) -> None:
        self._num_workers = num_workers
        self._most = MOST_PREFETCH
        self._durations: list[float] = []
        self._runs = 0
        self.prefetch = 0

    def ran(self, duration: float, *, returned: bool = True) -> None:
        """A job took `duration` seconds; `returned`: it did all that it had to do.

        One that raises at once tells nothing of how long others take, and its own next attempt: if it counted, hundreds
        would be held in advance for a moment's trouble, and be suspects together if the process dies.
        """
        if not returned and duration <= HORIZON:
            return
        durations, runs = self._durations, self._runs
        if len(durations) < _WINDOW:
            durations.append(duration)
        else:
            durations[runs % _WINDOW] = duration
        self._runs = runs = runs + 1
        # a run time that changes for the worse must be seen at once; for the better, soon
        if runs == MIN_RUNS or (runs > MIN_RUNS and (runs % 64 == 0 or duration > HORIZON)):
            self._decide()

    def overslept(self) -> None:
        """Jobs held in advance were not started in time: hold none until the picture is new."""
        self._durations.clear()
        self._runs = 0
        self.prefetch = 0
        self._most = MAX_PREFETCH  # others want the loop, too

    def _decide(self) -> None:
        ordered = sorted(self._durations)
        p95 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.95))]
        most = self._most if p95 * self._most <= QUICKLY else MAX_PREFETCH
        self.prefetch = min(most, int(self._num_workers * HORIZON / max(p95, 1e-6)))
