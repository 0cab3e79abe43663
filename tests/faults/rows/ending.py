"""Row 20: runners that are told to end at the worst moment, or twice."""

from __future__ import annotations

import signal
import time
from typing import Any

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.faults.judging import effects_once
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, Flaky, Held
from tests.helpers.history import History, by
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.runners import eventually, left

_KINDS: tuple[Any, ...] = (Brief, Effect, Flaky)
_TYPES = "brief,effect,flaky"
_JOBS = 40
#: Where a runner passes on its way, whatever it is told meanwhile.
_POINTS = (
    "claim",
    "claimed",
    "complete",
    "completed",
    "settle",
    "settled",
    "maintain",
    "maintained",
)
_POINTS_IN_JOBS = ("transaction begun", "transaction written", "transaction committed")
_PATIENCE = 60.0
#: Seconds within which a second signal ends a runner, whatever its jobs do.
_AT_ONCE = 5.0


@row(
    "20",
    "SIGTERM at the worst moment, twice, INT then TERM",
    "at each failpoint: the runner ends with status 0, orphaned claims 0, lost 0, twice 0; a second signal gives back "
    "and ends within 5 s",
)
def told_to_end(bench: Bench) -> Found:
    found = Found(injected=0, jobs=0)
    points = [*_POINTS, *_POINTS_IN_JOBS]
    bench.chance.shuffle(points)
    for passing in bench.pick(full=range(1, 11), quick=range(1, 2), tiny=range(1, 2)):
        for point in points[: bench.pick(full=None, quick=None, tiny=3)]:
            with bench.stage() as (_, conn, history, workers):
                _at(found, conn, history, workers, f"{point}=term@{passing}")
    pairs = [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)]
    for first, second in pairs * bench.pick(full=10, quick=1, tiny=1):
        with bench.stage() as (_, conn, history, workers):
            _twice(bench, found, conn, history, workers, first, second)
    return found


def _at(
    found: Found, conn: psycopg.Connection[Any], history: History, workers: Crew, point: str
) -> None:
    """One runner, told to end at `point`; what it leaves is claimed by nobody, and another one does it."""
    conn.execute(EFFECTS)
    runner = workers.start(_TYPES, workers=4, failpoints=point)
    ids = _given(conn, runner)
    status = runner.wait()
    found.expect(status == 0, f"{point}: it ended with {status}")
    orphans = conn.execute(
        "SELECT count(*) FROM background_jobs WHERE session_id IS NOT NULL"
    ).fetchone()
    found.expect(orphans == (0,), f"{point}: {orphans} jobs are claimed by nobody that lives")
    found.expect(left(conn)["worker_sessions"] == 0, f"{point}: its session is left")
    _finished_by_another(found, conn, workers)
    found.judge(history.check([job for each in ids.values() for job in each]))
    effects_once(found, conn, ids[Effect], where=f"{point}: ")
    found.injected += 1
    found.jobs += sum(map(len, ids.values()))


def _given(conn: psycopg.Connection[Any], runner: WorkerProcess) -> dict[type, list[int | None]]:
    """Jobs for the runner, until it has passed its point; their ids."""
    ids: dict[type, list[int | None]] = {kind: [] for kind in _KINDS}
    deadline = time.monotonic() + _PATIENCE
    while runner.alive and time.monotonic() < deadline:
        if left(conn)["background_jobs"] < _JOBS:
            for kind in _KINDS:
                batch = [kind(key=key, seconds=0.005) for key in range(_JOBS)]
                ids[kind] += kind.enqueue_batch(conn, batch)
    return ids


def _finished_by_another(found: Found, conn: psycopg.Connection[Any], workers: Crew) -> None:
    """Another runner does what is left, and the tables end empty."""
    last = workers.start(_TYPES, "--until-empty")
    found.expect(last.wait() == 0, "the next runner did not end well")
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")


def _twice(
    bench: Bench,
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    workers: Crew,
    first: signal.Signals,
    second: signal.Signals,
) -> None:
    """Its jobs never end: the second signal stops them, and they are free for others at once."""
    ids = Held.enqueue_batch(conn, [Held(key=key) for key in range(4)])
    runner = workers.start("held", workers=4)
    runner.ready()
    history.wait_for("start", count=4)
    runner.send(first)
    history.wait_for("log", where=lambda event: "finishing the jobs" in event.text)
    began = time.monotonic()
    runner.send(second)
    runner.wait()
    found.recovered(time.monotonic() - began, within=_AT_ONCE * bench.margin)
    free = conn.execute("SELECT count(*) FROM background_jobs WHERE session_id IS NULL").fetchone()
    found.expect(free == (4,), f"{first.name}, {second.name}: {free} of 4 jobs are free")
    heir = workers.start("held", workers=4)
    heir.ready()
    history.wait_for("start", count=4, where=by(heir.name))
    heir.open()
    eventually(lambda: left(conn)["background_jobs"] == 0)
    heir.send(signal.SIGTERM)
    found.expect(heir.wait() == 0, "the heir did not end well")
    found.judge(history.check(ids))
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")
    found.injected += 1
    found.jobs += 4
