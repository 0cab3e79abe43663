"""Deduplicated jobs that go back, while open transactions are just enqueueing identical ones."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import Any

import psycopg

from ... import failpoints
from .control_link import ControlLink

__all__ = ["LAST_PASS_SECONDS", "PASS_SECONDS", "Apart"]

_Rows = list[tuple[Any, ...]]

#: The lease is waiting to be renewed: no more than this many waits of 10 ms in one go, and no try is begun after so long;
#: longer at the end of a session, which nothing comes after.
_MAX_BLOCKED, PASS_SECONDS, LAST_PASS_SECONDS = 100, 1.0, 10.0
#: Nor is a statement to take longer than this, whatever is in its rows: the link would be given up, and nothing come of it.
_LONGEST = "3s"


class Apart:
    """All together; or in groups, leaving out the jobs that have to wait: they must not keep the others.

    A group that is held up is halved. The largest and the smallest take turns: many that wait are passed by at once where
    they lie together, and one by one where they don't. A pass goes on where the last one ran out of time, so that in the end
    each job is tried, whatever is in front of it.
    """

    def __init__(self, link: ControlLink) -> None:
        self._link = link
        self._groups: deque[list[int]] = deque()  # the largest first
        self._waiting: set[int] = set()
        self._smallest = False  # the next group to be tried is the smallest
        self._too_long = False  # the last try that failed did so by its own length
        self._in_parts = False  # and so did that of all together

    def give_back(
        self,
        step: Callable[[Collection[int] | None], _Rows],
        ids: Callable[[], Iterable[int]],
        seconds: float = PASS_SECONDS,
    ) -> _Rows:
        """The rows of `step`, which gives back those jobs of `ids`, or all."""
        if not (self._in_parts and self._groups):
            rows = self._try(lambda: step(None), "250ms")
            if rows is not None:
                self._forget()
                return rows
            self._in_parts = self._too_long
        return self._one_pass(step, set(ids()), time.monotonic() + seconds)

    def _one_pass(
        self, step: Callable[[Collection[int]], _Rows], ids: set[int], until: float
    ) -> _Rows:
        rows: _Rows = []
        blocked = 0
        groups = self._groups = self._still(ids)
        while groups and blocked < _MAX_BLOCKED and time.monotonic() < until:
            group = groups.pop() if self._smallest else groups.popleft()
            some = self._try(partial(step, group), "10ms")
            if some is not None:
                rows += some
                failpoints.hit("given back in part")
                continue
            blocked += 1
            self._smallest = not self._smallest
            if len(group) > 1:
                groups += _halves(group)
            else:
                self._waiting.update(group)
        if not groups:  # everything was tried; transactions may have ended since
            self._forget()
        return rows

    def _still(self, ids: set[int]) -> deque[list[int]]:
        """What is new, and the groups of the last pass as far as they are still there."""
        known = [[job_id for job_id in group if job_id in ids] for group in self._groups]
        new = ids.difference(self._waiting, *known)
        groups = [group for group in [sorted(new), *known] if group]
        if self._in_parts and len(groups) == 1:  # it would take too long again
            groups = [group for group in _halves(groups[0]) if group]
        return deque(groups)

    def _try(self, step: Callable[[], _Rows], lock_timeout: str) -> _Rows | None:
        try:
            with self._link.transaction(lock_timeout=lock_timeout, statement_timeout=_LONGEST):
                return step()
        except (psycopg.errors.LockNotAvailable, psycopg.errors.QueryCanceled) as error:
            self._too_long = isinstance(error, psycopg.errors.QueryCanceled)
            return None

    def _forget(self) -> None:
        self._groups.clear()
        self._waiting.clear()
        self._in_parts = False


def _halves(group: list[int]) -> tuple[list[int], list[int]]:
    half = len(group) // 2
    return group[:half], group[half:]
