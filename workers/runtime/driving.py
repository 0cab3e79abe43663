"""Running a job's coroutine inside a task that is not its own, in a context that is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine, Generator
from contextvars import Context
from typing import Any

__all__ = ["Driven", "as_coroutine", "come_clean"]


class Driven(Awaitable[None]):
    """A coroutine that was started in `scope` and yielded `waited_for`, continued there to its end."""

    __slots__ = ("_coroutine", "_scope", "_waited_for")

    def __init__(
        self, coroutine: Coroutine[Any, Any, Any], scope: Context, waited_for: Any
    ) -> None:
        self._coroutine = coroutine
        self._scope = scope
        self._waited_for = waited_for

    def __await__(self) -> Generator[Any, Any, None]:
        enter, send, throw = self._scope.run, self._coroutine.send, self._coroutine.throw
        waited_for = self._waited_for
        try:
            while True:
                try:
                    sent = yield waited_for
                except GeneratorExit:
                    enter(self._coroutine.close)
                    raise
                except BaseException as error:
                    waited_for = enter(throw, error)
                else:
                    waited_for = enter(send, sent)
        except StopIteration:
            return


def as_coroutine(value: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    """Whatever can be awaited, as a coroutine."""
    return value if isinstance(value, Coroutine) else _await(value)


async def _await(value: Awaitable[Any]) -> None:
    await value


async def come_clean(task: asyncio.Task[Any]) -> None:
    """Take delivery of cancellations that were meant for the job of `task`, and forget them."""
    while task.cancelling():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        while task.cancelling():
            task.uncancel()
