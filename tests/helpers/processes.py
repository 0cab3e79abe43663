"""Workers and producers, processes that a test starts, hurts and ends."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import BinaryIO

import msgspec
from psycopg.conninfo import conninfo_to_dict

from tests.helpers.audit import WRITER
from tests.helpers.history import PATIENCE, Event, History, Kind, by
from tests.helpers.nursery import Nursery
from tests.helpers.server import connection_url

__all__ = ["Crew", "WorkerProcess", "crew"]

#: What Python, asyncio and the driver say of what was not awaited, not closed, or left behind.
_CARELESS = (
    "was never awaited",
    "ResourceWarning",
    "was destroyed but it is pending",
    "exception was never retrieved",
    "Exception ignored in",
)
_NOTED: dict[signal.Signals, Kind] = {
    signal.SIGKILL: "killed",
    signal.SIGSTOP: "frozen",
    signal.SIGCONT: "woken",
}


class WorkerProcess:
    """One `tests.helpers.worker_process` or `producer_process`; its events go to `history` under `name`."""

    def __init__(
        self, name: str, pid: int, status: Future[int], streams: tuple[int, int], history: History
    ) -> None:
        self.name = name
        self.pid = pid
        self._status = status
        self._history = history
        commands, output = streams
        self._commands = os.fdopen(commands, "wb", buffering=0)
        reader = os.fdopen(output, "rb", buffering=0)
        self._reader = threading.Thread(target=self._read, args=[reader], daemon=True)
        self._reader.start()

    def _read(self, output: BinaryIO) -> None:
        decode = msgspec.json.Decoder(Event).decode
        with output:
            rest = b""
            while chunk := output.read(65536):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    self._history.add(decode(line))
        self._history.add(Event(what="gone", process=self.name))

    def ready(self) -> int:
        """Wait until it can claim; its session's id."""
        (event, *_) = self._history.wait_for("ready", "gone", where=by(self.name))
        if event.what == "gone":
            raise RuntimeError(f"{self.name} has ended with status {self.wait()}; see its output")
        return event.session

    def open(self) -> None:
        """Let its held jobs go."""
        self.tell("open")

    def tell(self, command: str) -> None:
        """Send it a line."""
        self._commands.write(f"{command}\n".encode())

    def arm(self, point: str) -> None:
        """Arm its failpoints anew, as in workers.failpoints, and wait until they are."""
        self.tell(f"arm {point}")
        self._history.wait_for(
            "log", where=lambda event: event.text == "armed" and event.process == self.name
        )

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        if number in _NOTED:
            self._history.add(Event(what=_NOTED[number], process=self.name))
        os.kill(self.pid, number)

    def kill(self) -> float:
        """SIGKILL; when, by the clock of the events."""
        self.send(signal.SIGKILL)
        self.wait()
        (event, *_) = self._history.events("killed", where=by(self.name))
        return event.at

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait until it has ended and everything that it wrote is in the history; its exit status."""
        status = self._status.result(seconds)
        self._reader.join(seconds)
        self._commands.close()
        return status

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return not self._status.done()


class Crew:
    """The processes of one test, on one database: workers, its `members`, and producers."""

    def __init__(
        self, nursery: Nursery, database_url: str, history: History, name: str, seed: float
    ) -> None:
        self.database_url = database_url
        self.history = history
        self.name = name
        self.members: list[WorkerProcess] = []
        self.producers: list[WorkerProcess] = []
        self._nursery = nursery
        self._chance = random.Random(seed)
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`

    def start(self, types: str, *flags: str, **options: object) -> WorkerProcess:
        """Start a worker: `start("brief,held", "--until-empty", lease=1)`. It may not be ready yet."""
        name = f"{self.name}-{len(self.members) + 1}"
        member = self._start(
            name, "work", types, flags, {"database_url": self.database_url} | options
        )
        self.members.append(member)
        return member

    def start_producer(self, types: str, **options: object) -> WorkerProcess:
        """Start a producer; see tests/helpers/producers.py."""
        name = f"{self.name}-producer-{len(self.producers) + 1}"
        given = {"database_url": self.database_url, "seed": self._chance.random()}
        member = self._start(name, "produce", types, (), given | options)
        self.producers.append(member)
        return member

    def _start(
        self, name: str, what: str, types: str, flags: Sequence[str], options: dict[str, object]
    ) -> WorkerProcess:
        url = str(options["database_url"])
        if "options" in conninfo_to_dict(url):  # not through a pooler, which takes none
            writer = name.replace(" ", "\\ ")
            options["database_url"] = connection_url(url, options=f"-c{WRITER}={writer}")
        arguments = [what, "--name", name, "--types", types, *flags]
        for option, value in options.items():
            arguments += [f"--{option.replace('_', '-')}", str(value)]
        its_input, commands = os.pipe()
        output, its_output = os.pipe()
        streams = [its_input, its_output, self._errors.fileno()]
        pid, status = self._nursery.start(arguments, streams)
        os.close(its_input)
        os.close(its_output)
        return WorkerProcess(name, pid, status, (commands, output), self.history)

    def close(self) -> None:
        """Kill whoever is left, and pass on what they wrote to standard error. Raises AssertionError when that is a warning
        of something that was not awaited, not closed, or left behind."""
        with self._errors:
            for member in [*self.members, *self.producers]:
                if member.alive:
                    with contextlib.suppress(ProcessLookupError):  # it has just ended
                        member.send(signal.SIGKILL)
                member.wait()
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace")
        sys.stderr.write(said)
        careless = [line for line in said.splitlines() if any(sign in line for sign in _CARELESS)]
        assert not careless, f"{self.name}: {careless[:5]}"


@contextlib.contextmanager
def crew(
    nursery: Nursery,
    database_url: str,
    history: History,
    name: str = "worker",
    *,
    seed: float = 0.0,
) -> Iterator[Crew]:
    """A crew; whoever of it is left at the end is killed. Several on one history need a `name` each. `seed`: of what the
    producers choose."""
    own = Crew(nursery, database_url, history, name, seed)
    try:
        yield own
    finally:
        own.close()
