"""What this runner has in its hands: which jobs, under which claims. Pure bookkeeping.

Used by the event loop; the control thread reads it, so every update is a single operation on a dict.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import TypeVar

from ..job import ClaimedJob
from ..storage.base import Guard

__all__ = ["Ledger"]

W = TypeVar("W")

_token = attrgetter("token")


class Ledger:
    """The jobs of each claim, by its token. Tokens rise for the life of the process, across sessions."""

    def __init__(self) -> None:
        self.session = 0
        self.claims = 0
        #: Rises with each claim that brought something, or of which it is not known what it brought.
        self.news = 0
        #: When a claim was given back whose reply had been lost, by the monotonic clock. It may land yet.
        self.lost_at = float("-inf")
        self._last_token = 0
        self._sessions: list[tuple[int, int]] = []  # (first token, session), latest last
        self._first_token = 1  # of the latest session
        self._on_their_way: set[int] = set()
        # token -> ids of its jobs; an id can be under two, when what was just given back is claimed again
        self._held: dict[int, set[int]] = {}
        self._claimed_at: dict[int, float] = {}
        self._when_settled: dict[int, Callable[[], object]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._held.values()))

    def __bool__(self) -> bool:
        return bool(self._held)

    def begin_session(self, session: int) -> None:
        """Claims from here on belong to `session`."""
        self._first_token = self._last_token + 1
        self._sessions.append((self._first_token, session))
        self.session = session

    def session_of(self, token: int) -> int:
        """The session that a token was used in."""
        if token >= self._first_token:
            return self.session
        for first, session in reversed(self._sessions):
            if token >= first:
                return session
        return self.session

    def begin_claim(self) -> int:
        """A new token, known as on its way until `claimed` or `unclaimed`."""
        self._last_token += 1
        self._on_their_way.add(self._last_token)
        return self._last_token

    def claimed(self, token: int, jobs: Sequence[ClaimedJob], now: float) -> None:
        """The claim under `token` arrived."""
        if jobs:
            self.claims += 1
            self.news += 1
            self._held[token] = {job.id for job in jobs}
            self._claimed_at[token] = now
        # last: the control thread looks here first
        self._on_their_way.discard(token)

    def unclaimed(self, token: int) -> None:
        """Nothing is known to stand under `token`."""
        self.news += 1
        self._on_their_way.discard(token)

    def lost(self, token: int, now: float) -> None:
        """What stood under `token` was given back; its reply had been lost."""
        self.lost_at = now
        self.news += 1
        self._on_their_way.discard(token)

    def claimed_at(self, token: int) -> float:
        """When the jobs under `token` arrived."""
        return self._claimed_at.get(token, 0.0)

    def by_session(self, items: Sequence[W], token: Callable[[W], int]) -> dict[int, Sequence[W]]:
        """Items by the session that claimed them: nearly always one."""
        if items and min(map(token, items)) >= self._first_token:
            return {self.session: items}
        groups: dict[int, list[W]] = {}
        for item in items:
            groups.setdefault(self.session_of(token(item)), []).append(item)
        return {**groups}

    def closing(self, guards: Iterable[Guard]) -> list[int]:
        """The tokens of this session of which no job is left once `guards` are written."""
        counts = Counter(map(_token, guards))
        emptied = [
            token for token, count in counts.items() if len(self._held.get(token, ())) == count
        ]
        return self._of_this_session(emptied)

    def settled(self, guards: Iterable[Guard]) -> list[int]:
        """`guards` were written, or turned out to be somebody else's.

        Returns the tokens of this session of which nothing is left.
        """
        done: dict[int, list[int]] = defaultdict(list)
        for guard in guards:
            done[guard.token].append(guard.id)
        emptied = []
        for token, ids in done.items():
            if (held := self._held.get(token)) is None:
                continue
            held.difference_update(ids)
            if not held:
                del self._held[token]
                self._claimed_at.pop(token, None)
                emptied.append(token)
                if self._when_settled and (callback := self._when_settled.pop(token, None)):
                    callback()
        return self._of_this_session(emptied)

    def when_settled(self, token: int, callback: Callable[[], object]) -> None:
        """Call back once nothing is left of the claim."""
        self._when_settled[token] = callback

    def _of_this_session(self, tokens: list[int]) -> list[int]:
        """What a session held when it was taken for dead is found by its claims: they are not this runner's to forget."""
        if not self._sessions or not tokens:
            return tokens
        first = self._sessions[-1][0]
        return [token for token in tokens if token >= first]

    def orphans(self, claims: Mapping[int, Collection[int]]) -> list[Guard]:
        """Jobs that the store holds for this session and nobody here knows of: the reply of their claim was lost."""
        return [
            Guard(job_id, token)
            for token, ids in claims.items()
            if token not in self._on_their_way
            for job_id in ids
            if job_id not in self._held.get(token, ())
        ]
