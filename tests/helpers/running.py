"""What the tests of the runner share: a world for jobs to act on, runners that end, and waiting for answers."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypeVar

import psycopg

from workers import BackgroundJob, Runner, RunnerHandle, telemetry
from workers.storage import StorageTarget

__all__ = ["PATIENCE", "World", "drain", "eventually", "listening_to", "make_runner", "running"]

#: Seconds until a wait is given up. Waits end when what they wait for happens: only a failing test lasts this long.
PATIENCE = 20.0

E = TypeVar("E", bound=telemetry.Event)


class World:
    """The context of a test's jobs: they note what they did, say where they are, and wait for leave to go on.

    Usable from threads, and from an event loop other than the test's own.
    """

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self._signals: dict[str, threading.Event] = defaultdict(threading.Event)
        self._waiters: dict[str, list[tuple[asyncio.AbstractEventLoop, asyncio.Event]]] = {}
        self._lock = threading.Lock()

    def note(self, what: Any) -> None:
        """Something was done."""
        self.seen.append(what)

    def signal(self, name: str) -> None:
        """`name` has happened."""
        with self._lock:
            self._signals[name].set()
            waiters = self._waiters.pop(name, [])
        for loop, event in waiters:
            loop.call_soon_threadsafe(event.set)

    def happened(self, name: str) -> bool:
        """Whether `name` has happened."""
        return self._signals[name].is_set()

    async def wait(self, name: str, seconds: float = PATIENCE) -> None:
        """Wait until `name` has happened."""
        event = asyncio.Event()
        with self._lock:
            if self._signals[name].is_set():
                return
            waiter = (asyncio.get_running_loop(), event)
            self._waiters.setdefault(name, []).append(waiter)
        async with asyncio.timeout(seconds):
            await event.wait()

    def wait_in_thread(self, name: str, seconds: float = PATIENCE) -> None:
        """The same for code in threads."""
        if not self._signals[name].wait(seconds):
            raise TimeoutError(f"{name} did not happen")


def make_runner(
    target: StorageTarget,
    *job_types: type[BackgroundJob[Any]],
    context: Any = None,
    workers: int = 10,
    poll: float = 0.2,
    queues: Mapping[str, Mapping[str, Any]] | None = None,
    **settings: Any,
) -> Runner[Any]:
    """A runner of `job_types`, with `workers` for each of their queues; `queues` sets some apart."""
    runner: Runner[Any] = Runner(target, context, **settings)
    for job_type in job_types:
        runner.register_job_type(job_type)
        runner.configure_queue(job_type.queue, num_workers=workers, poll_interval=poll, jitter=0)
    for name, queue in (queues or {}).items():
        runner.configure_queue(name, **queue)
    return runner


@asynccontextmanager
async def running(
    target: StorageTarget, *job_types: type[BackgroundJob[Any]], grace: float = 5.0, **settings: Any
) -> AsyncIterator[RunnerHandle]:
    """A runner that is ready, shut down at the end."""
    async with make_runner(target, *job_types, grace=grace, **settings).start() as handle:
        yield handle


async def drain(
    target: StorageTarget, *job_types: type[BackgroundJob[Any]], **settings: Any
) -> None:
    """Run until the queues are empty."""
    runner = make_runner(target, *job_types, **settings).shutdown_when_queue_empty()
    async with asyncio.timeout(PATIENCE):
        assert await runner.start().wait_for_shutdown() == []


async def eventually(
    conn: psycopg.Connection, query: str, expected: object, *, seconds: float = PATIENCE
) -> None:
    """Ask the database until it answers with `expected` rows."""
    rows: object = None
    try:
        async with asyncio.timeout(seconds):
            while (rows := conn.execute(query.encode()).fetchall()) != expected:  # noqa: ASYNC110 - a database can't be awaited
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"{query}: {rows}, not {expected}") from None


class Heard(list[E]):
    """Events in the order in which they came."""

    def __init__(self) -> None:
        super().__init__()
        self._more = asyncio.Event()
        self._loop = asyncio.get_running_loop()

    def hear(self, event: E) -> None:
        """Take note of `event`."""
        self.append(event)
        self._loop.call_soon_threadsafe(self._more.set)

    async def wait_for(self, wanted: Callable[[E], bool] = lambda event: True, count: int = 1) -> E:
        """Wait until `count` wanted events have come; returns the last of them."""
        async with asyncio.timeout(PATIENCE):
            while len(found := [event for event in self if wanted(event)]) < count:
                self._more.clear()
                await self._more.wait()
        return found[count - 1]


@contextmanager
def listening_to(*kinds: type[E]) -> Iterator[Heard[E]]:
    """The telemetry events of `kinds`, as they come."""
    heard: Heard[E] = Heard()
    with telemetry.subscribe(heard.hear, *kinds):
        yield heard
