"""One library, one kind of poison: a fresh database, a worker process, and what became of the good jobs."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import psycopg
from psycopg import sql

from tests.faults.beside.kinds import Kind
from tests.faults.beside.libraries import SCRIPTS, CannotBeWrittenError, Library
from tests.faults.beside.output import START, last_error, tail
from tests.helpers.server import connection_url

__all__ = ["Outcome", "Stage", "prepared"]

GOOD_JOBS = 200
#: A worker has this long for the good jobs, and half of it for what follows; longer while it still makes progress,
#: because a busy machine is no failure.
SECONDS = 20.0
QUIET_SECONDS = 10.0
SETTLING = 5
#: A process that ends is started again, as a supervisor would.
STARTS = 4


class Outcome(msgspec.Struct, kw_only=True):
    """What became of it. `verdict`: "survived", "restarted" (all good jobs ran, but its process had to be started again),
    "stopped", or "can't be written".
    """

    library: str
    version: str
    kind: str
    verdict: str
    how: str = ""
    good: int = 0
    twice: int = 0
    unfinished: int = 0
    later: bool = False
    exits: int = 0
    good_at_first_exit: int | None = None
    written: int = 0
    refused: dict[str, int] = {}
    fate: dict[str, int] = {}
    seconds: float = 0.0
    output: str = ""


class Stage(msgspec.Struct, frozen=True):
    """A library with its tables made, in a database that each trial copies."""

    library: Library
    version: str
    home: Path | None
    server: str
    folder: Path
    template: str
    seconds: float = SECONDS

    def run(self, kind: Kind) -> Outcome:
        """One kind of poison."""
        with _database(self.server, f"{self.template}_{kind.name}", self.template) as dsn:
            return _Trial(self, kind, dsn).run()


@contextlib.contextmanager
def prepared(
    library: Library, home: Path | None, server: str, folder: Path, seconds: float = SECONDS
) -> Iterator[Stage]:
    """Make the library's tables; `folder` is for what its workers say, `seconds` are for each kind."""
    template = f"beside_{library.name}"
    with _database(server, template) as dsn:
        library.call(home, "setup", dsn=dsn)
        version = library.call(home, "version")
        yield Stage(library, version, home, server, folder, template, seconds)


@contextlib.contextmanager
def _database(server: str, name: str, template: str = "template1") -> Iterator[str]:
    with psycopg.connect(server, autocommit=True) as admin:
        identifiers = {"name": sql.Identifier(name), "template": sql.Identifier(template)}
        admin.execute(sql.SQL("DROP DATABASE IF EXISTS {name} WITH (FORCE)").format(**identifiers))
        admin.execute(sql.SQL("CREATE DATABASE {name} TEMPLATE {template}").format(**identifiers))
        try:
            yield connection_url(server, dbname=name)
        finally:
            admin.execute(sql.SQL("DROP DATABASE {name} WITH (FORCE)").format(**identifiers))


class _Trial:
    def __init__(self, stage: Stage, kind: Kind, dsn: str) -> None:
        self._stage = stage
        self._kind = kind
        self._dsn = dsn
        self._ran = stage.folder / f"{stage.library.name}-{kind.name}.ran"
        self._output = stage.folder / f"{stage.library.name}-{kind.name}.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self._starts = 0
        self._outcome = Outcome(
            library=stage.library.name,
            version=stage.version,
            kind=kind.name,
            verdict="can't be written",
        )

    def run(self) -> Outcome:
        """Write the rows, work on them, look."""
        outcome, began = self._outcome, time.monotonic()
        with psycopg.connect(self._dsn, autocommit=True) as conn:
            keys, refused = self._write(conn)
            outcome.written, outcome.refused = len(keys), dict(refused)
            if not keys:
                return outcome
            self._ran.touch()
            self._enqueue(0, GOOD_JOBS)
            try:
                self._work(conn, keys)
                states = self._settled(conn, keys)
            finally:
                self._stop()
        outcome.fate = dict(Counter(states.get(key, "gone") for key in keys))
        outcome.seconds = round(time.monotonic() - began, 1)
        self._judge()
        return outcome

    def _write(self, conn: psycopg.Connection[Any]) -> tuple[list[str], Counter[str]]:
        """First, so that they are first in the order of claims."""
        keys: list[str] = []
        refused: Counter[str] = Counter()
        for row in self._kind.all_rows:
            try:
                keys.append(self._stage.library.write(conn, row))
            except CannotBeWrittenError as error:
                refused[str(error)] += 1
        return keys, refused

    def _work(self, conn: psycopg.Connection[Any], keys: list[str]) -> None:
        """Until all good jobs ran and are finished, or nothing happens any more."""
        outcome = self._outcome
        poison = set(keys)
        self._wait(lambda: self._good() == GOOD_JOBS, self._stage.seconds)
        self._enqueue(GOOD_JOBS, GOOD_JOBS + 1)
        outcome.later = self._wait(lambda: GOOD_JOBS in self._counts(), self._stage.seconds / 2)

        def unfinished() -> int:
            states = self._states(conn)
            return sum(
                state in self._stage.library.open and key not in poison
                for key, state in states.items()
            )

        if outcome.later:
            self._wait(lambda: unfinished() == 0, self._stage.seconds / 2)
        outcome.unfinished = unfinished()
        outcome.good = self._good()
        outcome.twice = sum(times > 1 for times in self._counts().values())

    def _settled(self, conn: psycopg.Connection[Any], keys: list[str]) -> dict[str, str]:
        """The states of the rows, once those of the poison stay the same."""
        for _ in range(SETTLING):
            states = self._states(conn)
            time.sleep(1)
            after = self._states(conn)
            if all(states.get(key) == after.get(key) for key in keys):
                return after
        return self._states(conn)

    def _wait(self, holds: Callable[[], bool], seconds: float) -> bool:
        """Whether it came to hold, in that time or, while something moves, in four times that."""
        began = moved = time.monotonic()
        before: tuple[int, int] | None = None
        while not holds():
            now, state = time.monotonic(), (self._good(), self._processor_seconds())
            if state != before:
                before, moved = state, now
            quiet = now - moved > QUIET_SECONDS
            if now - began > seconds and (quiet or now - began > 4 * seconds):
                return False
            if not self._alive():
                return holds()
            time.sleep(0.1)
        return True

    def _processor_seconds(self) -> int:
        """What its process has used: one that calculates is slow, not stopped."""
        if self._process is None or self._process.poll() is not None:
            return 0
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) // os.sysconf("SC_CLK_TCK")
        return 0

    def _alive(self) -> bool:
        """Start it at first and, as often as that makes sense, when it has ended."""
        if self._process is not None and self._process.poll() is None:
            return True
        if self._starts == 1:
            self._outcome.good_at_first_exit = self._good()
        if self._starts == STARTS:
            return False
        if self._starts:
            time.sleep(1)
        self._starts += 1
        library, home = self._stage.library, self._stage.home
        with self._output.open("ab") as output:
            output.write(f"{START}\n".encode())
            output.flush()
            # in a session of its own, so that its children can be ended with it
            self._process = subprocess.Popen(
                library.command(home, "worker"),
                env=library.environment(home, self._dsn, self._ran),
                cwd=SCRIPTS,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        return True

    def _stop(self) -> None:
        process = self._process
        if process is None:
            return
        ended = process.poll() is not None
        self._outcome.exits = self._starts - (0 if ended else 1)
        if not ended:
            process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def _judge(self) -> None:
        outcome = self._outcome
        fine = outcome.good == GOOD_JOBS and outcome.later and not outcome.unfinished
        outcome.verdict = (
            "survived" if fine and not outcome.exits else "restarted" if fine else "stopped"
        )
        if outcome.verdict != "survived":
            outcome.output = str(self._output)
            starts = tail(self._output).split(START)
            outcome.how = last_error(
                starts[-2] if outcome.exits and outcome.exits < self._starts else starts[-1]
            )
        else:
            self._output.unlink()
        self._ran.unlink()

    def _enqueue(self, first: int, last: int) -> None:
        self._stage.library.call(self._stage.home, "enqueue", str(first), str(last), dsn=self._dsn)

    def _states(self, conn: psycopg.Connection[Any]) -> dict[str, str]:
        return dict(conn.execute(self._stage.library.states.encode()).fetchall())

    def _counts(self) -> Counter[int]:
        lines = self._ran.read_bytes().split()
        numbers = (int(line) for line in lines if re.fullmatch(rb"\d{1,3}", line))
        return Counter(number for number in numbers if number <= GOOD_JOBS)

    def _good(self) -> int:
        return sum(number < GOOD_JOBS for number in self._counts())
