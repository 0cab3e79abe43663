"""What happened, as everybody who took part wrote it down, and what is to be concluded from it.

Each event is a line of JSON. Worker processes write theirs to a pipe, so that what was written before a kill is not lost;
one `History` gathers the events of all of them, in memory to be waited for and in a file to be read afterwards. `check`
is the "total-queue" idea of Jepsen: of everything that was enqueued, what was lost, came unexpected, was doubled, recovered.
It needs nothing but the events, so that a file that was kept is judged again by `python -m tests.faults --judge FILE`.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import msgspec

__all__ = ["Event", "History", "Kind", "Verdict", "by", "check", "read", "saying"]

Kind = Literal[
    "invoke",  # a producer begins to enqueue
    "unknown",  # a job is written, and its commit not confirmed; what follows may settle that
    "ok",  # a job's commit was confirmed; `since`: when it was sent, or the job asked for
    "waits",  # a producer was told that an identical job waits, and wrote nothing; `since`: when it asked
    "fail",  # a producer's statement or commit failed
    "explained",  # the test says that this job need not have finished: dead, superseded, still there
    "ready",  # a runner can claim
    "start",  # a job's code began
    "end",  # a job's code returned
    "broken",  # a job's code was left by an exception: stopped, cancelled, failed
    "fenced",  # a runner's write was refused
    "superseded",  # a job made way for an identical one
    "session lost",  # a runner's session was reaped; `session` is the new one
    "rescued",  # a runner gave back the jobs of a dead session
    "log",  # what a runner said
    "exit",  # a runner has ended
    "gone",  # a process has ended
    "killed",  # the test is about to kill a process
    "frozen",  # the test is about to stop a process
    "woken",  # the test lets it go on
]

#: Seconds until a test gives up: far above what anything here takes on a machine that is busy with other things.
PATIENCE = 30.0


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One line. `at` is CLOCK_MONOTONIC, which all processes of a machine share."""

    what: Kind
    process: str
    at: float = msgspec.field(default_factory=time.monotonic)
    job: int = 0
    token: str = ""
    session: int = 0
    since: float = 0.0
    text: str = ""

    def line(self) -> bytes:
        """The event as it is written."""
        return msgspec.json.encode(self) + b"\n"


Filter = Callable[[Event], bool]


def by(process: str) -> Filter:
    """Only what `process` wrote."""
    return lambda event: event.process == process


def saying(text: str, process: str | None = None) -> Filter:
    """Only what contains `text`, and was said by `process` if one is given."""
    return lambda event: text in event.text and process in (None, event.process)


class History:
    """The events of one test, in the order in which they arrived. Usable from any thread."""

    def __init__(self, path: Path | None = None) -> None:
        self._file = path.open("ab") if path is not None else None
        self._events: list[Event] = []
        self._arrived = threading.Condition()

    def add(self, event: Event) -> None:
        """Take note of `event`."""
        with self._arrived:
            self._events.append(event)
            if self._file is not None:
                self._file.write(event.line())
            self._arrived.notify_all()

    def acknowledge(self, jobs: Iterable[int | None]) -> None:
        """The test itself has enqueued these. (None: an identical one waits.)"""
        self._tell("ok", jobs)

    def check(
        self,
        enqueued: Iterable[int | None] = (),
        explained: Iterable[int | None] = (),
        *,
        unknown: Iterable[int | None] = (),
    ) -> Verdict:
        """Judge what has come to rest, when it is written down what the test has `enqueued` beside the producers, of which
        jobs it was never told whether they are there (`unknown`), and which need not have finished (`explained`)."""
        self._tell("unknown", unknown)
        self.acknowledge(set(enqueued) - {event.job for event in self.events("ok", "unknown")})
        self._tell("explained", explained)
        return check(self.events())

    def _tell(self, what: Kind, jobs: Iterable[int | None]) -> None:
        for job in {job for job in jobs if job is not None}:
            self.add(Event(what=what, process="test", job=job))

    def close(self) -> None:
        """Finish the file."""
        with self._arrived:
            if self._file is not None:
                self._file.close()
                self._file = None

    def events(self, *kinds: Kind, where: Filter | None = None) -> list[Event]:
        """What has arrived, of the given kinds (of any without)."""
        with self._arrived:
            return _matching(self._events, kinds, where)

    def wait_for(
        self, *kinds: Kind, count: int = 1, where: Filter | None = None, seconds: float = PATIENCE
    ) -> list[Event]:
        """The matching events, once there are `count` of them. Raises TimeoutError, which tells what there was."""

        found: list[Event] = []
        seen, deadline = 0, time.monotonic() + seconds
        with self._arrived:
            while True:
                found += _matching(self._events[seen:], kinds, where)
                seen = len(self._events)
                if len(found) >= count:
                    return found
                if not self._arrived.wait(max(0.0, deadline - time.monotonic())):
                    break
            last = "\n".join(str(event) for event in self._events[-30:])
            raise TimeoutError(f"no {count} events of {kinds} in {seconds} s; last:\n{last}")


def _matching(events: Sequence[Event], kinds: Sequence[Kind], where: Filter | None) -> list[Event]:
    return [
        event
        for event in events
        if (not kinds or event.what in kinds) and (where is None or where(event))
    ]


@dataclass(frozen=True, slots=True)
class Verdict:
    """Job ids. All but `recovered` must be empty after a run without duplicates allowed.

    `lost`: acknowledged, never finished, and nothing explains it. `unexpected`: ran and was never enqueued. `premature`:
    began before its commit was sent. `duplicated`: finished more than once. `repeated`: begun again after it had finished
    in a process that nothing was done to, neither then nor, if it was stopped, during the attempt: its claim may have been
    given to others by the time it was let go on. `overlapping`: begun again while a living process was still at it.
    `recovered`: finished after an attempt that did not.
    """

    lost: list[int] = field(default_factory=list)
    unexpected: list[int] = field(default_factory=list)
    premature: list[int] = field(default_factory=list)
    duplicated: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)
    overlapping: list[int] = field(default_factory=list)
    recovered: list[int] = field(default_factory=list)


def check(events: Iterable[Event]) -> Verdict:
    """Judge a run that has come to rest."""
    sent: dict[int, float] = {}  # of what was acknowledged
    unsure: set[int] = set()  # need not have run, or finished
    unknown: set[int] = set()
    runs: dict[int, list[Event]] = defaultdict(list)
    # process -> when it was killed or stopped, as the test saw it, a moment before it came about; or had ended
    interrupted: dict[str, list[float]] = defaultdict(list)
    frozen: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.what in ("start", "end", "broken"):
            runs[event.job].append(event)
        elif event.what in ("killed", "frozen", "gone"):
            interrupted[event.process].append(event.at)
            if event.what == "frozen":
                frozen[event.process].append(event.at)
        elif event.what == "ok":
            sent[event.job] = event.since
        elif event.what == "unknown":
            unknown.add(event.job)
        elif event.what == "explained":
            unsure.add(event.job)
    finished = {job: sum(event.what == "end" for event in run) for job, run in runs.items()}
    return Verdict(
        lost=sorted(job for job in sent.keys() - unsure if not finished.get(job)),
        unexpected=sorted(runs.keys() - sent.keys() - unknown),
        premature=sorted(
            job for job, run in runs.items() if min(event.at for event in run) < sent.get(job, 0.0)
        ),
        duplicated=sorted(job for job, times in finished.items() if times > 1),
        repeated=sorted(job for job, run in runs.items() if _is_repeated(run, interrupted, frozen)),
        overlapping=sorted(job for job, run in runs.items() if _overlap(run, interrupted)),
        recovered=sorted(
            job
            for job, run in runs.items()
            if finished[job] and sum(event.what == "start" for event in run) > finished[job]
        ),
    )


def read(path: Path) -> list[Event]:
    """The events of a file. Raises OSError and msgspec.DecodeError."""
    decode = msgspec.json.Decoder(Event).decode
    return [decode(line) for line in path.read_bytes().splitlines()]


#: A signal is noted before it is sent, and an end is read a moment after it came about; a job may begin in between.
_MOMENT = 0.5


def _overlap(run: list[Event], interrupted: Mapping[str, Sequence[float]]) -> bool:
    """Whether a start came between the start and the end of another attempt, in a process that was not interfered with."""
    ends = {event.token: event.at for event in run if event.what != "start"}
    starts = sorted((event for event in run if event.what == "start"), key=lambda event: event.at)
    for earlier, later in itertools.pairwise(starts):
        hits = interrupted.get(earlier.process, ())
        if later.at < ends.get(earlier.token, float("inf")) and not any(
            earlier.at - _MOMENT <= hit <= later.at for hit in hits
        ):
            return True
    return False


def _is_repeated(
    run: list[Event],
    interrupted: Mapping[str, Sequence[float]],
    frozen: Mapping[str, Sequence[float]],
) -> bool:
    """Whether a start followed on the end of another attempt, in a process that was not interfered with in between, nor
    frozen during that attempt."""
    starts = [event for event in run if event.what == "start"]
    if len(starts) == 1:
        return False
    begun = {event.token: event.at for event in starts}
    for end in (event for event in run if event.what == "end"):
        begin = begun.get(end.token, end.at)
        if any(begin - _MOMENT <= hit <= end.at for hit in frozen.get(end.process, ())):
            continue
        hits = interrupted.get(end.process, ())
        for start in starts:
            if end.at < start.at and not any(
                end.at - _MOMENT <= hit <= start.at + _MOMENT for hit in hits
            ):
                return True
    return False
