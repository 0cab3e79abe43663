"""The job types of the fault tests. Each writes down when it starts and how it ends, through its context, a `Stage`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from importlib import import_module

from tests.helpers.history import Event, Kind
from workers import BackgroundJob, current_job

__all__ = [
    "BY_NAME",
    "Blocking",
    "Brief",
    "Deadly",
    "Effect",
    "EffectInThread",
    "Flaky",
    "Held",
    "HeldInThread",
    "Later",
    "Noise",
    "Seeing",
    "Stage",
    "Twin",
    "Unique",
    "add_job_types",
    "job_types",
]

#: Seconds that held jobs in threads wait at most: a thread that is left behind would keep the test process.
_THREAD_PATIENCE = 60.0
#: What transactional jobs leave behind, once each; without a unique index, so that a second one would be seen.
EFFECTS = "CREATE TABLE effects (job bigint NOT NULL, token text NOT NULL)"


class Stage:
    """The context of fault jobs: where to write down what happens, and the gate that held jobs wait at."""

    def __init__(self, process: str, write: Callable[[Event], None]) -> None:
        self.process = process
        self._write = write
        self.gate = asyncio.Event()
        self.thread_gate = threading.Event()

    def open(self) -> None:
        """Let held jobs go. On the event loop."""
        self.gate.set()
        self.thread_gate.set()

    def note(self, what: Kind, *, job: int = 0, session: int = 0, text: str = "") -> None:
        """Write down something that is not about a run."""
        self._write(
            Event(what=what, process=self.process, job=job, session=session, text=str(text))
        )

    @contextlib.contextmanager
    def run(self, text: str = "") -> Iterator[None]:
        """Write down the start and the end of the job that runs here."""
        job, what = current_job(), "broken"
        session = int(job.claim_token.partition("-")[0])

        def event(what: Kind, text: str) -> Event:
            return Event(
                what=what,
                process=self.process,
                job=job.id,
                token=job.claim_token,
                session=session,
                text=text,
            )

        self._write(event("start", text))
        try:
            yield
            what = "end"
        finally:
            self._write(event("end" if what == "end" else "broken", text))


class Brief(BackgroundJob[Stage]):
    """Takes `seconds`."""

    key: int = 0
    seconds: float = 0.0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            await asyncio.sleep(self.seconds)


class Noise(BackgroundJob[Stage]):
    """Keeps a worker busy for a moment, and is not worth a note."""

    key: int = 0

    async def run(self, stage: Stage) -> None:
        await asyncio.sleep(0.001)


class Held(BackgroundJob[Stage]):
    """Runs until the gate is open."""

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            await stage.gate.wait()


class HeldInThread(BackgroundJob[Stage]):
    """The same in a thread."""

    key: int = 0

    def run(self, stage: Stage) -> None:
        with stage.run():
            stage.thread_gate.wait(_THREAD_PATIENCE)


class Effect(BackgroundJob[Stage]):
    """Has an effect in its own transaction, then takes `seconds`."""

    transactional = True
    backoff = 0.0

    key: int = 0
    seconds: float = 0.0

    async def run(self, stage: Stage) -> None:
        job = current_job()
        with stage.run():
            await job.connection.execute(
                "INSERT INTO effects VALUES (%s, %s)", [job.id, job.claim_token]
            )
            await asyncio.sleep(self.seconds)


class EffectInThread(BackgroundJob[Stage]):
    """The same in a thread, with a pause that a kill can hit but a cancellation can't."""

    transactional = True
    backoff = 0.0

    key: int = 0
    seconds: float = 0.0

    def run(self, stage: Stage) -> None:
        job = current_job()
        with stage.run():
            job.connection.execute("INSERT INTO effects VALUES (%s, %s)", [job.id, job.claim_token])
            time.sleep(self.seconds)


class Twin(BackgroundJob[Stage]):
    """Deduplicated, and held."""

    deduplicated = True

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            await stage.gate.wait()


class Seeing(BackgroundJob[Stage]):
    """Deduplicated; writes down the value that it sees in its row of the table `setting`."""

    deduplicated = True
    transactional = True

    key: int = 0

    async def run(self, stage: Stage) -> None:
        query = "SELECT value FROM setting WHERE key = %s"
        cursor = await current_job().connection.execute(query, [self.key])
        with stage.run((await cursor.fetchone())[0]):
            pass


class Unique(BackgroundJob[Stage]):
    """Deduplicated; says which one it is. Every seventh fails once, and meets others on its way back."""

    deduplicated = True
    backoff = 0.0

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run(str(self.key)):
            if self.key % 7 == 0 and current_job().attempt == 1:
                raise RuntimeError("the first time")
            await asyncio.sleep(0.001)


class Deadly(BackgroundJob[Stage]):
    """Ends the process that runs it, without a word to anyone."""

    max_crashes = 3

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            os._exit(7)


class Blocking(BackgroundJob[Stage]):
    """Blocks the event loop."""

    seconds: float

    async def run(self, stage: Stage) -> None:
        with stage.run():
            time.sleep(self.seconds)  # noqa: ASYNC251 - the fault


class Flaky(BackgroundJob[Stage]):
    """Fails once, then takes `seconds`. `held`: not before the gate is open."""

    backoff = 0.0

    key: int = 0
    seconds: float = 0.0
    held: bool = False

    async def run(self, stage: Stage) -> None:
        with stage.run():
            if self.held:
                await stage.gate.wait()
            if current_job().attempt == 1:
                raise RuntimeError("the first time")
            await asyncio.sleep(self.seconds)


class Later(BackgroundJob[Stage]):
    """A type that an older worker does not know."""

    key: int = 0

    async def run(self, stage: Stage) -> None:
        with stage.run():
            pass


BY_NAME: dict[str, type[BackgroundJob[Stage]]] = {
    job_class.job_name: job_class
    for job_class in (
        Brief,
        Noise,
        Held,
        HeldInThread,
        Effect,
        EffectInThread,
        Twin,
        Seeing,
        Unique,
        Deadly,
        Blocking,
        Flaky,
        Later,
    )
}


def add_job_types(*job_classes: type[BackgroundJob[Stage]]) -> None:
    """Make further ones known by their names."""
    for job_class in job_classes:
        if job_class.job_name in BY_NAME:
            raise ValueError(f"there are two job types {job_class.job_name!r}")
        BY_NAME[job_class.job_name] = job_class


def job_types(names: str) -> list[type[BackgroundJob[Stage]]]:
    """The classes of the given names, separated by commas; `module:name` where that module is to be imported first."""
    found = []
    for name in names.split(","):
        module, _, job_name = name.rpartition(":")
        if module:
            import_module(module)
        found.append(BY_NAME[job_name])
    return found
