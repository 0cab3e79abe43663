"""Worker processes that a test starts, hurts and ends."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import BinaryIO

import msgspec

from tests.helpers.history import PATIENCE, Event, History, Kind, by
from tests.helpers.nursery import Nursery

__all__ = ["Crew", "WorkerProcess", "crew"]

_NOTED: dict[signal.Signals, Kind] = {
    signal.SIGKILL: "killed",
    signal.SIGSTOP: "frozen",
    signal.SIGCONT: "woken",
}


class WorkerProcess:
    """One `tests.helpers.worker_process`; its events go to `history` under `name`."""

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
        self._commands.write(b"open\n")

    def arm(self, point: str) -> None:
        """Arm its failpoints anew, as in workers.failpoints, and wait until they are."""
        self._commands.write(f"arm {point}\n".encode())
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
    """The worker processes of one test, on one database."""

    def __init__(
        self, nursery: Nursery, database_url: str, history: History, name: str = "worker"
    ) -> None:
        self.database_url = database_url
        self.name = name
        self.members: list[WorkerProcess] = []
        self._nursery = nursery
        self._history = history

    def start(self, types: str, *flags: str, **options: object) -> WorkerProcess:
        """Start one: `start("brief,held", "--until-empty", lease=1)`. It may not be ready yet."""
        name = f"{self.name}-{len(self.members) + 1}"
        arguments = ["--name", name, "--types", types, *flags]
        for option, value in ({"database_url": self.database_url} | options).items():
            arguments += [f"--{option.replace('_', '-')}", str(value)]
        its_input, commands = os.pipe()
        output, its_output = os.pipe()
        pid, status = self._nursery.start(arguments, [its_input, its_output, 2])
        os.close(its_input)
        os.close(its_output)
        member = WorkerProcess(name, pid, status, (commands, output), self._history)
        self.members.append(member)
        return member


@contextlib.contextmanager
def crew(
    nursery: Nursery, database_url: str, history: History, name: str = "worker"
) -> Iterator[Crew]:
    """A crew; whoever of it is left at the end is killed. Several on one history need a `name` each."""
    own = Crew(nursery, database_url, history, name)
    try:
        yield own
    finally:
        for member in own.members:
            if member.alive:
                member.send(signal.SIGKILL)
            member.wait()
