"""A sampling profiler for one thread: where its processor time goes, without slowing it down as a tracing profiler would.

A timer interrupts the main thread; what it was in the middle of is charged to the innermost function that belongs to one of
the packages looked for. So whatever a package calls in the standard library or in C counts as its own time.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import CodeType, FrameType, ModuleType

__all__ = ["Profile", "sampled"]

_EVERY = 0.0005


class Profile:
    """Shares of the samples, by owner and by function."""

    def __init__(self, owners: Mapping[str, list[ModuleType]]) -> None:
        self._folders = [
            (f"{Path(str(module.__file__)).parent}/", owner)
            for owner, modules in owners.items()
            for module in modules
        ]
        # by code: its owner and its name; None: ask its caller; an empty owner: not to be counted
        self._known: dict[CodeType, tuple[str, str] | None] = {}
        self._owners: Counter[str] = Counter()
        self._functions: Counter[str] = Counter()

    def take(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        while frame is not None:
            code = frame.f_code
            if code not in self._known:
                self._known[code] = self._look_up(code)
            if (found := self._known[code]) is not None:
                owner, name = found
                if owner:
                    self._owners[owner] += 1
                    self._functions[f"{owner}: {name}"] += 1
                return
            frame = frame.f_back

    def owners(self) -> dict[str, float]:
        """The share of each owner."""
        return self._shares(self._owners.most_common())

    def hottest(self, most: int = 20) -> dict[str, float]:
        """The functions with the largest shares; what they call in others that were looked for is not theirs."""
        return self._shares(self._functions.most_common(most))

    def _shares(self, counts: list[tuple[str, int]]) -> dict[str, float]:
        total = max(1, self._owners.total())
        return {name: count / total for name, count in counts}

    def _look_up(self, code: CodeType) -> tuple[str, str] | None:
        path = Path(code.co_filename)
        waiting = path.name == "selectors.py" and code.co_name == "select"
        if waiting or code.co_filename == __file__:
            return "", ""
        for folder, owner in self._folders:
            if code.co_filename.startswith(folder):
                return owner, f"{path.stem}.{code.co_qualname}"
        return None


@contextmanager
def sampled(owners: Mapping[str, list[ModuleType]]) -> Iterator[Profile]:
    """Profile the block. Main thread only, and not where signals of timers are already in use."""
    profile = Profile(owners)
    before = signal.signal(signal.SIGALRM, profile.take)
    signal.setitimer(signal.ITIMER_REAL, _EVERY, _EVERY)
    try:
        yield profile
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
