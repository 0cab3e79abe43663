"""Coroutines that run elsewhere or later: a job's inside a task that is not its own; one that may never be begun."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextvars import Context
from typing import Any, TypeVar

import anyio

__all__ = [
    "Deferred",
    "Driven",
    "Shield",
    "as_coroutine",
    "come_clean",
    "insist",
    "is_struck",
    "uncancellable",
]

T = TypeVar("T")

#: Seconds until a loop that was cancelled between two steps, and goes on, is cancelled again.
_CANCEL_EVERY = 0.1


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


class Deferred(Coroutine[Any, Any, None]):
    """The coroutine of `function(*args)`, made when it is first awaited.

    anyio wraps the coroutines that it starts. When a loop closes before a task's first step, the one inside would be left,
    and Python would warn of it.
    """

    __slots__ = ("_args", "_function")

    def __init__(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        self._function = function
        self._args = args

    def __await__(self) -> Generator[Any, Any, None]:
        return self._function(*self._args).__await__()

    def send(self, value: Any) -> Any:
        """Only awaited, never driven by hand."""
        raise NotImplementedError

    def throw(self, *error: Any) -> Any:
        """Only awaited, never driven by hand."""
        raise NotImplementedError

    def close(self) -> None:
        """There is nothing yet."""


class Shield:
    """Takes steps that no scope cancels, one at a time. When it is closed, the one on its way has some seconds left."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._loop: asyncio.Task[None] | None = None
        self._task: asyncio.Task[Any] | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def busy(self) -> bool:
        """A step is on its way."""
        return self._lock.locked()

    async def run(self, loop: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a loop that takes many steps, and cancel it only between two of them.

        In a task of its own, which no scope reaches: one for each step would cost a wake-up as much as all that is there
        to be shielded.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - for the type checker
        inner = self._loop = asyncio.create_task(loop(), name=f"{task.get_name()}-loop")
        try:
            await asyncio.wait([inner])
        except asyncio.CancelledError:
            while not inner.done():
                with contextlib.suppress(asyncio.CancelledError), anyio.CancelScope(shield=True):
                    async with self._lock:
                        inner.cancel()
                    # again: some that wait with a deadline take it for theirs. (What it does on its way out has as long.)
                    await asyncio.wait([inner], timeout=_CANCEL_EVERY)
            if inner.cancelled() or inner.exception() is None:
                raise
        error = None if inner.cancelled() else inner.exception()
        if error is not None and not isinstance(error, Exception):
            # such as SystemExit, which the loop has raised already: again, it would end the loop before all is closed
            raise BaseExceptionGroup("amid a step", [error])
        inner.result()

    async def take(self, step: Callable[[], Awaitable[T]]) -> T:
        """Take a step; raises what it raises."""
        task = asyncio.current_task()
        if task is self._loop:
            return await self._take(step, task)
        with anyio.CancelScope(shield=True):
            result = await self._take(step, task)
        return result  # noqa: RET504 - for the type checker a scope may swallow what is raised

    async def _take(self, step: Callable[[], Awaitable[T]], task: asyncio.Task[Any] | None) -> T:
        async with self._lock:
            self._task = task
            try:
                return await step()
            finally:
                self._task = None

    def close(self, seconds: float) -> None:
        """Cancel what is on its way, in so many seconds and each time they have passed again.

        At the first time a database driver tells the server, at the second it no longer waits for an answer. A scope would
        cancel again at once.
        """
        if self._timer is None and self._task is not None:
            self._arm(self._task, seconds)

    def _arm(self, task: asyncio.Task[Any], seconds: float) -> None:
        self._timer = task.get_loop().call_later(seconds, self._strike, seconds)

    def _strike(self, seconds: float) -> None:
        if self._task is not None:
            self._task.cancel()
            self._arm(self._task, seconds)


def uncancellable() -> Future[Any]:
    """A future that whoever awaits it can't cancel: the `set_result` of a thread would raise, and end that."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def as_coroutine(value: Awaitable[Any]) -> Coroutine[Any, Any, Any]:
    """Whatever can be awaited, as a coroutine."""
    return value if isinstance(value, Coroutine) else _await(value)


async def _await(value: Awaitable[Any]) -> None:
    await value


async def come_clean(task: asyncio.Task[Any]) -> None:
    """Take delivery of cancellations that were meant for the job of `task`, and forget them."""
    while task.cancelling() or is_struck(task):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        while task.cancelling():
            task.uncancel()


def is_struck(task: asyncio.Task[Any]) -> bool:
    """Whether a cancellation waits for the task's next step. Until Python 3.13 it does so even when it was taken back."""
    return getattr(task, "_must_cancel", False)


async def insist(step: Callable[[], Awaitable[None]], hurry: Callable[[], None]) -> None:
    """Take a step on the way down, whoever cancels this task: then `hurry`, and the step begins anew.

    Raises CancelledError afterwards.
    """
    cancelled = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await step()
            break
        except asyncio.CancelledError as error:
            cancelled = error
            hurry()
    if cancelled is not None:
        raise cancelled
