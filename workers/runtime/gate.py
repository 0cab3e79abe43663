"""What the claimers of a runner share: whether the session may claim, and whether a suspect must be alone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

__all__ = ["Gate"]


class Gate:
    """Closed while the session's link is down."""

    def __init__(self) -> None:
        self._open = asyncio.Event()
        self._waiting: set[Callable[[], object]] = set()
        #: A job is here that killed its process more than once: no other one of the kind, and nothing in advance.
        self.exclusive = False

    def call_when_free(self, callback: Callable[[], object]) -> None:
        """Call back, once, when the job that must be alone has ended."""
        self._waiting.add(callback)

    def free(self) -> None:
        """No job is here that must be alone."""
        self.exclusive = False
        waiting, self._waiting = self._waiting, set()
        for callback in waiting:
            callback()

    def open(self) -> None:
        """Let claims through."""
        self._open.set()

    def close(self) -> None:
        """Hold claims back."""
        self._open.clear()

    def is_open(self) -> bool:
        """Whether the session may claim now."""
        return self._open.is_set()

    async def wait_open(self) -> None:
        """Wait until the session may claim."""
        await self._open.wait()
