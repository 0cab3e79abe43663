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
from workers.failpoints import POINTS

_KINDS: tuple[Any, ...] = (Brief, Effect, Flaky)
_TYPES = "brief,effect,flaky"
_MOST_JOBS = 60
#: So short that it looks after itself, and after others, twice a second.
_LEASE = 1.5
#: Where a runner comes by once in its life: at its beginning, and at its end, where it has been told already.
_BEGINNING = ("session locked", "session opened")
_END = ("release", "given back", "release written", "released")
#: Where it comes by when it finds a dead session.
_RESCUE = (
    "rescue",
    "rescued",
    "rescued all",
    "claims buried",
    "removal written",
    "sessions removed",
)
#: What a runner with such jobs, on such a server, does not come by, and what it would take. Whatever else there is it must
#: pass: a new point is tried, and the row says so when it is not reached.
_NOT_HERE = {
    "claim given back": "the reply to a claim is lost",
    "completed in part": "somebody has locked rows of jobs that end",
    "settled archive": "jobs are archived, which is written with completions",
    "settled bury": "jobs die",
    "settled wait_deduplicated": "deduplicated jobs go back",
    "settled alone": "the same, behind a producer's open transaction",
    "recover": "the session's connection is lost",
    "lock retaken": "the same",
    "recovered": "the same",
    "lock taken late": "somebody else has the session's lock",
    "given back in part": "deduplicated jobs go back behind a producer's open transaction",
    "give back": "it holds jobs without knowing",
    "given back all": "the same",
    "claims ended": "the same",
    "enqueue written": "producers pass it, runners do not",
    "enqueued": "the same",
    "requeued": "`requeue` passes it, runners do not",
}
_ANYWHERE = [point for point in POINTS if point not in (*_BEGINNING, *_END, *_RESCUE, *_NOT_HERE)]
_ONCE = [point for point in POINTS if point in (*_BEGINNING, *_END, *_RESCUE)]
_PATIENCE = 60.0
#: Seconds within which a second signal ends a runner, whatever its jobs do.
_AT_ONCE = 5.0


@row(
    "20",
    "SIGTERM at the worst moment, twice, INT then TERM",
    "at each failpoint that a runner passes in a life without other faults (its start, claims, outcomes, transactions, "
    "housekeeping, the rescue of a dead session, its end: there it is the second signal): it ends with status 0, orphaned "
    "claims 0, lost 0, twice 0; while jobs go on, a second signal gives them back and ends it with status 0 within 5 s",
)
def told_to_end(bench: Bench) -> Found:
    found = Found(injected=0, jobs=0)
    passings = bench.pick(full=range(1, 11), quick=range(1, 2), tiny=range(1, 2))
    places = [(point, passing) for passing in passings for point in _ANYWHERE]
    places += [(point, 1) for point in _ONCE]
    bench.chance.shuffle(places)
    for place in places[: bench.pick(full=None, quick=None, tiny=4)]:
        with bench.stage() as (_, conn, history, workers):
            _at(bench, found, (conn, history, workers), *place)
    pairs = [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)]
    for first, second in pairs * bench.pick(full=10, quick=1, tiny=1):
        with bench.stage() as (_, conn, history, workers):
            _twice(bench, found, conn, history, workers, first, second)
    return found


def _at(
    bench: Bench,
    found: Found,
    stage: tuple[psycopg.Connection[Any], History, Crew],
    point: str,
    passing: int,
) -> None:
    """One runner, told to end at `point`; what it leaves is claimed by nobody, and another one does it."""
    conn, history, workers = stage
    conn.execute(EFFECTS)
    dead = _left_behind(conn, history, workers) if point in _RESCUE else []
    runner = workers.start(_TYPES, workers=4, lease=_LEASE, failpoints=f"{point}=term@{passing}")
    ids = _given(bench, conn, history, runner, told=point in _END)
    ids[Brief] += dead
    found.expect(not runner.alive, f"{point} was not passed; say in _NOT_HERE what it takes")
    if runner.alive:
        runner.send(signal.SIGKILL)
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


def _left_behind(
    conn: psycopg.Connection[Any], history: History, workers: Crew
) -> list[int | None]:
    """Jobs of a process that is killed in the middle of them."""
    dying = workers.start(_TYPES, workers=4)
    dying.ready()
    ids = Brief.enqueue_batch(conn, [Brief(key=key, seconds=1.0) for key in range(4)])
    history.wait_for("start", count=len(ids))
    dying.kill()
    return ids


def _given(
    bench: Bench,
    conn: psycopg.Connection[Any],
    history: History,
    runner: WorkerProcess,
    *,
    told: bool,
) -> dict[type, list[int | None]]:
    """Jobs for the runner, until it has passed its point; their ids. `told`: the point comes after a first signal."""
    ids: dict[type, list[int | None]] = {kind: [] for kind in _KINDS}
    stock, seconds = bench.chance.randrange(4, _MOST_JOBS), bench.chance.uniform(0.0, 0.02)
    deadline = time.monotonic() + _PATIENCE
    while runner.alive and time.monotonic() < deadline:
        if left(conn)["background_jobs"] < stock:
            for kind in bench.chance.sample(_KINDS, len(_KINDS)):
                batch = [kind(key=key, seconds=seconds) for key in range(stock)]
                ids[kind] += kind.enqueue_batch(conn, batch)
        if told and history.events("start", where=by(runner.name)):
            told = False
            runner.send(signal.SIGTERM)
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
    number = bench.chance.randrange(1, 9)
    ids = Held.enqueue_batch(conn, [Held(key=key) for key in range(number)])
    runner = workers.start("held", workers=number)
    runner.ready()
    history.wait_for("start", count=number)
    runner.send(first)
    history.wait_for("log", where=lambda event: "finishing the jobs" in event.text)
    began = time.monotonic()
    runner.send(second)
    status = runner.wait()
    found.recovered(time.monotonic() - began, within=_AT_ONCE * bench.margin)
    found.expect(status == 0, f"{first.name}, {second.name}: it ended with {status}")
    free = conn.execute("SELECT count(*) FROM background_jobs WHERE session_id IS NULL").fetchone()
    found.expect(
        free == (number,), f"{first.name}, {second.name}: {free} of {number} jobs are free"
    )
    heir = workers.start("held", workers=number)
    heir.ready()
    history.wait_for("start", count=number, where=by(heir.name))
    heir.open()
    eventually(lambda: left(conn)["background_jobs"] == 0)
    heir.send(signal.SIGTERM)
    found.expect(heir.wait() == 0, "the heir did not end well")
    found.judge(history.check(ids))
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")
    found.injected += 1
    found.jobs += number
