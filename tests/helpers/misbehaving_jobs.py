"""Job types that do what job code must not do, and innocent ones that look for what those have left behind.

Importing this module adds them to `fault_jobs.BY_NAME`.
"""

from __future__ import annotations

import asyncio
import ctypes
import threading
import time
from contextvars import ContextVar

import anyio

from tests.helpers.fault_jobs import Stage, add_job_types
from workers import BackgroundJob, current_job

__all__ = [
    "TIMEOUT",
    "Cancelling",
    "Deaf",
    "Endless",
    "HoldingGil",
    "Innocent",
    "InnocentInThread",
    "Leaving",
    "LeavingInThread",
    "Overrunning",
    "Spinning",
]

#: Seconds that the endless ones get.
TIMEOUT = 0.5

tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
#: Tasks that jobs have left behind: the loop itself would let them be collected.
_left: list[asyncio.Task[bool]] = []


class Spinning(BackgroundJob[Stage]):
    """Blocks the event loop by computing."""

    seconds: float

    async def run(self, stage: Stage) -> None:
        with stage.run():
            spin(self.seconds)


def spin(seconds: float) -> None:
    """Compute."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        pass


class HoldingGil(BackgroundJob[Stage]):
    """Calls foreign code that keeps the GIL, for half of `seconds`: no thread of the process runs.

    Again and again: whoever looks afterwards may lose the GIL before it has looked, if a busy machine holds it up.
    """

    seconds: float

    async def run(self, stage: Stage) -> None:
        with stage.run():
            for _ in range(4):
                hold_the_gil(self.seconds / 2)
                await asyncio.sleep(0.2)


def hold_the_gil(seconds: float) -> None:
    """PyDLL, unlike CDLL, does not let go of it."""
    ctypes.PyDLL(None).poll(None, 0, int(seconds * 1000))


class Endless(BackgroundJob[Stage]):
    """Never ends the first time."""

    timeout = TIMEOUT
    backoff = 0.0

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run(attempt()):
            if current_job().attempt == 1:
                await asyncio.Event().wait()


class Deaf(BackgroundJob[Stage]):
    """The same, and does not listen when it is told to end; only the third time."""

    timeout = TIMEOUT
    backoff = 0.0

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run(attempt()):
            if current_job().attempt == 1:
                for _ in range(2):
                    try:
                        await asyncio.Event().wait()
                    except asyncio.CancelledError:
                        pass
                await asyncio.Event().wait()


class Overrunning(BackgroundJob[Stage]):
    """Takes `seconds` in a thread, which can't be ended, and returns as if nothing were wrong; the first time."""

    timeout = TIMEOUT
    backoff = 0.0

    seconds: float

    def run(self, stage: Stage) -> None:
        with stage.run(attempt()):
            if current_job().attempt == 1:
                time.sleep(self.seconds)


class Cancelling(BackgroundJob[Stage]):
    """Cancels the task it runs in: and waits, returns, has it done later, or leaves it in a scope that is cancelled."""

    backoff = 0.0

    how: str

    async def run(self, stage: Stage) -> None:
        with stage.run(attempt()):
            task = asyncio.current_task()
            assert task is not None
            if current_job().attempt > 1:
                return
            if self.how == "later":
                asyncio.get_running_loop().call_later(0.003, task.cancel)
            elif self.how == "scope":
                anyio.CancelScope().__enter__().cancel()
            else:
                task.cancel()
                if self.how == "waits":
                    await asyncio.sleep(1)


class Leaving(BackgroundJob[Stage]):
    """Leaves behind a value in its context, a thread and a task that do not end."""

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            tenant.set("left by an async job")
            threading.Thread(target=stage.thread_gate.wait, daemon=True).start()
            _left.append(asyncio.create_task(stage.gate.wait()))
            await asyncio.sleep(0)
            tenant.set("left after an await")


class LeavingInThread(BackgroundJob[Stage]):
    """The same from a thread."""

    key: int = 0

    def run(self, stage: Stage) -> None:
        with stage.run():
            tenant.set("left by a job in a thread")
            threading.Thread(target=stage.thread_gate.wait, daemon=True).start()


class Innocent(BackgroundJob[Stage]):
    """Takes `seconds`, and writes down what it found that is not its own."""

    backoff = 0.0

    key: int = 0
    seconds: float = 0.0

    async def run(self, stage: Stage) -> None:
        task = asyncio.current_task()
        assert task is not None
        stray = f"{task.cancelling()} cancellations, " if task.cancelling() else ""
        with stage.run(stray + leaks("innocent")):
            await asyncio.sleep(self.seconds)


class InnocentInThread(BackgroundJob[Stage]):
    """The same in a thread."""

    backoff = 0.0

    key: int = 0
    seconds: float = 0.0

    def run(self, stage: Stage) -> None:
        with stage.run(leaks("innocent_in_thread")):
            time.sleep(self.seconds)


def leaks(job_type: str) -> str:
    """Which attempt it is, and before that what of another job can be seen here."""
    found = []
    if tenant.get() != "nobody":
        found.append(f"a context variable {tenant.get()!r}")
    if current_job().job_type != job_type:
        found.append(f"another job: {current_job()!r}")
    return ", ".join([*found, attempt()])


def attempt() -> str:
    """Which one it is."""
    return f"attempt {current_job().attempt}"


add_job_types(
    Spinning,
    HoldingGil,
    Endless,
    Deaf,
    Overrunning,
    Cancelling,
    Leaving,
    LeavingInThread,
    Innocent,
    InnocentInThread,
)
