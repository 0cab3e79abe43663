"""Row 2: a process dies at each place in the code where that matters."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Mapping
from typing import Any

import psycopg

from tests.faults.harness import Bench, Found, row
from tests.faults.judging import effects_once, swept_away
from tests.faults.occasions import (
    AT_WORK,
    BEHIND_IT,
    NOTHING,
    SOON,
    Occasions,
    Victim,
    occasions_on,
)
from tests.faults.rows.deduplication import last_starts
from tests.helpers.ending_jobs import Ending, Pair
from tests.helpers.fault_jobs import EFFECTS, Effect, EffectInThread
from tests.helpers.history import History
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.runners import eventually, left
from workers.failpoints import POINTS

_TYPES = "brief,effect,effect_in_thread,ending,held,later,noise,pair,unique"
#: Jobs that a process can have finished without having written so.
_IN_FLIGHT = 16
_PATIENCE = 60.0
_KEPT = "SELECT id FROM dead_jobs UNION ALL SELECT id FROM archived_jobs"


@row(
    "2",
    "kill at every code point",
    "kill -9 at each failpoint (before and after whatever is committed alone, before each commit of several statements), at "
    "its first to fifth passing, but that a session ends once: all are reached, lost 0, transactional effects exactly once",
)
def killed_at_points(bench: Bench) -> Found:
    found = Found(injected=0, jobs=0)
    reached: set[str] = set()
    for passing in bench.pick(full=range(1, 6), quick=range(1, 3), tiny=range(1, 2)):
        with (
            bench.stage() as (url, conn, history, workers),
            occasions_on(url, conn, history, bench.chance) as occasions,
        ):
            conn.execute(EFFECTS)
            # one who has been there for a while may judge by leases, too
            workers.start(NOTHING, lease=SOON)
            killed: set[str] = set()
            for victims in (AT_WORK, BEHIND_IT):
                killed |= _killed(bench, found, victims, passing, occasions, workers)
            reached |= killed
            halves = occasions.over()
            found.expect(not halves, f"enqueued by halves: {halves}")
            _drained(found, conn, workers)
            _judged(found, conn, history, occasions, len(killed))
            swept_away(found, conn, workers, _TYPES)
    found.expect(reached == {*POINTS}, f"never reached: {({*POINTS} - reached) or 'none'}")
    return found


def _killed(
    bench: Bench,
    found: Found,
    victims: Mapping[str, Victim],
    passing: int,
    occasions: Occasions,
    workers: Crew,
) -> set[str]:
    """For each point a process that dies when it passes it so often, given every reason to; the points where one did."""
    points = [point for point, victim in victims.items() if passing == 1 or not victim.once]
    bench.chance.shuffle(points)
    armed: dict[str, WorkerProcess] = {}
    for point in points:
        victim = victims[point]
        armed[point] = workers.start(
            victim.types,
            workers=victim.workers,
            lease=victim.lease,
            grace=victim.grace,
            database_url=occasions.proxy.url if victim.proxied else workers.database_url,
            failpoints=f"{point}=kill@{passing}",
        )
    deadline, pause = time.monotonic() + _PATIENCE, threading.Event()
    while (alive := [point for point in points if armed[point].alive]) and (
        time.monotonic() < deadline
    ):
        for point in alive:
            victims[point].occasion(occasions, armed[point])
        pause.wait(0.01)
    died = [point for point in points if point not in alive]
    passed = {point for point in died if armed[point].wait() == -signal.SIGKILL}
    for point in alive:
        armed[point].kill()
    for point in points:
        found.expect(point in passed, f"{point!r} was not passed {passing} times")
    found.injected += len(passed)
    return passed


def _drained(found: Found, conn: psycopg.Connection[Any], workers: Crew) -> None:
    """Others finish what is left."""
    heirs = [workers.members[0], *(workers.start(_TYPES) for _ in range(2))]
    for heir in heirs:
        heir.open()
    with contextlib.suppress(TimeoutError):
        eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
    for heir in heirs:
        heir.ready()
        heir.send(signal.SIGTERM)
        found.expect(heir.wait() == 0, "an heir did not end well")


def _judged(
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    occasions: Occasions,
    killed: int,
) -> None:
    """What became of all jobs."""
    events, ids = history.events(), occasions.ids
    # some end without an end: archived, dead
    kept = {job for (job,) in conn.execute(_KEPT)}
    strange = kept - {*ids[Ending]}
    found.expect(
        not strange, f"dead or archived, for no reason of their own: {sorted(strange)[:10]}"
    )
    conn.execute("TRUNCATE dead_jobs, archived_jobs")
    everything = [job for each in ids.values() for job in each]
    found.jobs += len(everything)
    explained = [*kept, *ids[Pair]]
    found.judge(history.check(everything, explained), duplicates=killed * _IN_FLIGHT, by_kills=True)
    last = last_starts(events)
    missed = [
        relied for relied in occasions.relied if last.get(f"pair {relied.key}", 0.0) < relied.at
    ]
    found.lost += len(missed)
    found.expect(not missed, f"lost, as nothing ran for them afterwards: {missed[:10]}")
    effects_once(found, conn, [*ids[Effect], *ids[EffectInThread]])
