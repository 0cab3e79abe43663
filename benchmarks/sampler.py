"""A sampling profiler for one thread: where its processor time goes, without slowing it down as a tracing profiler would.

A timer interrupts the main thread; what it was in the middle of is charged to the innermost frame that belongs to one of the
packages looked for. So whatever a package calls in the standard library or in C counts as its own time.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType, ModuleType

__all__ = ["Profile", "sampled"]

_EVERY = 0.0005
#: The event loop has nothing to do, and waits.
_WAITING = ("selectors.py", "select")


class Profile:
    """Samples by owner, and by function."""

    def __init__(self, owners: Mapping[str, list[ModuleType]]) -> None:
        folders = {
            owner: [Path(str(module.__file__)).parent for module in owners[owner]]
            for owner in owners
        }
        self._folders = [
            (f"{folder}/", owner) for owner, found in folders.items() for folder in found
        ]
        self._owner_of: dict[str, str | None] = {}
        self._owners: Counter[str] = Counter()
        self._functions: Counter[str] = Counter()
        #: Processor seconds of the thread.
        self.seconds = 0.0

    def take(self, number: int, frame: FrameType | None) -> None:
        """The signal's handler."""
        if (
            frame is not None
            and (Path(frame.f_code.co_filename).name, frame.f_code.co_name) == _WAITING
        ):
            return
        while frame is not None:
            owner = self._owner(frame.f_code.co_filename)
            if owner is not None:
                where = Path(frame.f_code.co_filename)
                self._owners[owner] += 1
                self._functions[f"{owner}: {where.stem}.{frame.f_code.co_qualname}"] += 1
                return
            frame = frame.f_back

    def microseconds(self, n: int) -> dict[str, float]:
        """By owner, for each of `n` jobs."""
        return self._share(self._owners, n)

    def hottest(self, n: int, most: int = 20) -> dict[str, float]:
        """The functions that take longest, without what they call in other owners' code."""
        return self._share(Counter(dict(self._functions.most_common(most))), n)

    def _share(self, counts: Counter[str], n: int) -> dict[str, float]:
        unit = self.seconds * 1e6 / n / max(1, self._owners.total())
        return {name: round(count * unit, 2) for name, count in counts.most_common()}

    def _owner(self, filename: str) -> str | None:
        if filename not in self._owner_of:
            found = (owner for folder, owner in self._folders if filename.startswith(folder))
            self._owner_of[filename] = next(found, None)
        return self._owner_of[filename]


@contextmanager
def sampled(owners: Mapping[str, list[ModuleType]]) -> Iterator[Profile]:
    """Profile the block. Main thread only, and not where signals of timers are already in use."""
    profile = Profile(owners)
    before = signal.signal(signal.SIGALRM, profile.take)
    start = time.thread_time()
    signal.setitimer(signal.ITIMER_REAL, _EVERY, _EVERY)
    try:
        yield profile
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        profile.seconds = time.thread_time() - start
        signal.signal(signal.SIGALRM, before)
