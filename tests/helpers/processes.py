"""Worker processes that a test starts, hurts and ends."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import msgspec

from tests.helpers.history import PATIENCE, Event, History, by

__all__ = ["Crew", "WorkerProcess", "crew"]


class WorkerProcess:
    """One `tests.helpers.worker_process`; its events go to `history` under `name`."""

    def __init__(self, name: str, arguments: list[str], history: History) -> None:
        self.name = name
        self._history = history
        command = [sys.executable, "-m", "tests.helpers.worker_process", "--name", name, *arguments]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, name=f"reads-{name}", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        decode = msgspec.json.Decoder(Event).decode
        output = self._process.stdout
        assert output is not None
        with contextlib.closing(output):
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
        assert self._process.stdin is not None
        self._process.stdin.write(b"open\n")

    def send(self, number: signal.Signals) -> None:
        """Send a signal."""
        noted = {
            signal.SIGKILL: "killed",
            signal.SIGSTOP: "frozen",
            signal.SIGCONT: "woken",
        }.get(number)
        if noted is not None:
            event = msgspec.convert({"what": noted, "process": self.name}, Event)
            self._history.add(event)
        self._process.send_signal(number)

    def kill(self) -> float:
        """SIGKILL; when, by the clock of the events."""
        self.send(signal.SIGKILL)
        self.wait()
        (event, *_) = self._history.events("killed", where=by(self.name))
        return event.at

    def wait(self, seconds: float = PATIENCE) -> int:
        """Wait until it has ended and everything that it wrote is in the history; its exit status."""
        status = self._process.wait(seconds)
        self._reader.join(seconds)
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        return status

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None


class Crew:
    """The worker processes of one test, on one database."""

    def __init__(self, database_url: str, history: History) -> None:
        self.database_url = database_url
        self.history = history
        self.members: list[WorkerProcess] = []

    def start(self, types: str, *flags: str, **options: object) -> WorkerProcess:
        """Start one: `start("brief,held", "--until-empty", lease=1)`. It may not be ready yet."""
        arguments = ["--types", types, *flags]
        for name, value in ({"database_url": self.database_url} | options).items():
            arguments += [f"--{name.replace('_', '-')}", str(value)]
        member = WorkerProcess(f"worker-{len(self.members) + 1}", arguments, self.history)
        self.members.append(member)
        return member


@contextlib.contextmanager
def crew(database_url: str, history: History) -> Iterator[Crew]:
    """A crew; whoever of it is left at the end is killed."""
    own = Crew(database_url, history)
    try:
        yield own
    finally:
        left = [member for member in own.members if member.alive]
        for member in left:
            member.send(signal.SIGKILL)
        for member in own.members:
            member.wait()
