"""Row 2: a process dies at each place in the code where that matters."""

from __future__ import annotations

import signal
import time
from typing import Any

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.faults.judging import effects_once, swept_away
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect, EffectInThread, Flaky
from tests.helpers.history import History, by
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.runners import eventually, left
from workers.failpoints import POINTS

_TYPES = "brief,effect,effect_in_thread,flaky"
_KINDS: tuple[Any, ...] = (Brief, Effect, EffectInThread, Flaky)
_WORKERS = 4
#: Passed once in the life of a process; or too rarely, as all who could be rescued die soon.
_ONCE = ("session opened", "release", "released", "rescue", "rescued", "rescued all")
#: Jobs that a process can have finished without having written so.
_IN_FLIGHT = 4 * _WORKERS
#: Jobs of each kind that are there at least: no process is to wait in vain for something to die of.
_STOCK = 20
_PATIENCE = 60.0


@row(
    "2",
    "kill at every code point",
    "kill -9 at each failpoint (before and after every write, between claim and hand-over), at its first to fifth passing: "
    "every point is reached, lost 0, transactional effects exactly once",
)
def killed_at_points(bench: Bench) -> Found:
    passings = bench.pick(full=range(1, 6), quick=range(1, 3), tiny=range(1, 2))
    found = Found(injected=0, jobs=0)
    for passing in passings:
        points = [point for point in POINTS if passing == 1 or point not in _ONCE]
        bench.chance.shuffle(points)
        with bench.stage() as (_, conn, history, workers):
            conn.execute(EFFECTS)
            armed = {
                point: workers.start(_TYPES, workers=_WORKERS, failpoints=f"{point}=kill@{passing}")
                for point in points
            }
            ids = _until_all_are_dead(conn, history, armed)
            for point, member in armed.items():
                found.expect(not member.alive, f"{point!r} was not passed {passing} times")
            found.injected += sum(not member.alive for member in armed.values())
            found.jobs += sum(map(len, ids.values()))
            _drained(found, conn, history, workers, ids)
    return found


def _until_all_are_dead(
    conn: psycopg.Connection[Any], history: History, armed: dict[str, WorkerProcess]
) -> dict[type, list[int | None]]:
    """Give them jobs, and a reason to end, as long as any is alive; the ids of those jobs."""
    ids: dict[type, list[int | None]] = {kind: [] for kind in _KINDS}
    deadline, told = time.monotonic() + _PATIENCE, set[str]()
    while any(member.alive for member in armed.values()) and time.monotonic() < deadline:
        if left(conn)["background_jobs"] < 3 * _STOCK:
            for kind in _KINDS:
                batch = [kind(key=key, seconds=0.01) for key in range(_STOCK)]
                ids[kind] += kind.enqueue_batch(conn, batch)
        for point in {"release", "released"} & armed.keys() - told:
            if history.events("start", where=by(armed[point].name)):
                told.add(point)
                armed[point].send(signal.SIGTERM)
    return ids


def _drained(
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    workers: Crew,
    ids: dict[type, list[int | None]],
) -> None:
    """Others finish what is left; what became of all of it."""
    heirs = [workers.start(_TYPES) for _ in range(2)]
    eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
    for heir in heirs:
        heir.ready()
        heir.send(signal.SIGTERM)
        found.expect(heir.wait() == 0, "an heir did not end well")
    everything = [job for each in ids.values() for job in each]
    found.judge(history.check(everything), duplicates=len(POINTS) * _IN_FLIGHT)
    effects_once(found, conn, [*ids[Effect], *ids[EffectInThread]])
    swept_away(found, conn, workers, _TYPES)
