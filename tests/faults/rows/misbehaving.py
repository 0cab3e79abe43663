"""Row 21: jobs that do to their process what job code must not do."""

from __future__ import annotations

import signal
from collections import Counter
from typing import Any

import msgspec
import psycopg

from tests.faults.harness import Bench, Found, row
from tests.helpers.fault_jobs import Blocking, Brief
from tests.helpers.history import Event, History, by, check
from tests.helpers.misbehaving_jobs import (
    TIMEOUT,
    Cancelling,
    Deaf,
    Endless,
    HoldingGil,
    Innocent,
    InnocentInThread,
    Leaving,
    LeavingInThread,
    Overrunning,
    Spinning,
)
from tests.helpers.processes import Crew, WorkerProcess
from tests.helpers.runners import eventually, left
from workers.runtime.attempt import ASK_AGAIN

_PATIENCE = 120.0
#: A lease that is over soon.
_SOON = 1.5
#: Those that keep their lease; one that holds the GIL can't renew it.
_RENEWED = ("blocking", "spinning", "endless")
#: Seconds after which a loop that stands still is named here.
_STALL = 0.3
#: Where each of those that stop the loop does it, as its stack says.
_PLACES = {
    "blocking": "time.sleep(self.seconds)",
    "spinning": "in spin",
    "holding_gil": "in hold_the_gil",
}
_ENDLESS: tuple[Any, ...] = (Endless, Deaf)
_GOOD: tuple[Any, ...] = (Innocent, InnocentInThread)
#: Seconds from the timeout to the end of what can be ended; those that do not listen are told again, twice here.
_WITHIN = {"endless": 1.0, "deaf": 2 * ASK_AGAIN + 1.0}


@row(
    "21",
    "jobs that misbehave",
    "a job that blocks the event loop for longer than its lease, computes there, or holds the GIL (for less than its "
    "lease) is named with its stack, and no claim of its runner is given away; one that holds the GIL for longer loses "
    "its claim, runs elsewhere, is stopped where it was, and nothing is written of that; timeouts end what can be ended, "
    "within 1 s; cancellations of its own task, context variables, threads and tasks left behind are not seen by other "
    "jobs; lost 0, twice 0",
)
def misbehaving_jobs(bench: Bench) -> Found:
    found = Found(injected=0, jobs=0)
    for _ in range(bench.pick(full=20, quick=2, tiny=1)):
        with bench.stage() as (_, conn, history, workers):
            _standing_still(bench, found, conn, history, workers)
    for _ in range(bench.pick(full=5, quick=1, tiny=0)):
        with bench.stage() as (_, conn, history, workers):
            _held_too_long(bench, found, conn, history, workers)
    with bench.stage() as (_, conn, history, workers):
        _crowd(bench, found, conn, history, workers)
    return found


def _standing_still(
    bench: Bench,
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    workers: Crew,
) -> None:
    """Each fault in a process of its own; beside them one that would take what they do not keep."""
    lease = bench.pick(full=3.0, quick=2.0, tiny=1.5)
    seconds = lease * bench.pick(full=3.0, quick=2.5, tiny=1.8)
    flags = {"lease": lease, "loop_stall_limit": _STALL, "poll_interval": 0.2}
    places = {
        "blocking": workers.start("blocking,brief", **flags),
        "spinning": workers.start("spinning", **flags),
        "holding_gil": workers.start("holding_gil", loop_stall_limit=_STALL),
        "endless": workers.start("endless,deaf,overrunning", **flags),
    }
    sessions = {name: member.ready() for name, member in places.items()}
    jobs = [Brief(key=key, seconds=seconds / 2) for key in range(3)]
    beside = Brief.enqueue_batch(conn, jobs)
    history.wait_for("start", count=len(beside))
    blockers = {
        kind.job_name: kind(seconds=seconds).enqueue(conn)
        for kind in (Blocking, Spinning, HoldingGil)
    }
    endless = [kind(key=key).enqueue(conn) for kind in _ENDLESS for key in range(3)]
    overrun = [Overrunning(seconds=seconds).enqueue(conn) for _ in range(3)]
    ids = [*beside, *blockers.values(), *endless, *overrun]
    history.wait_for("start", count=len(ids))
    everything = "blocking,brief,spinning,holding_gil,endless,deaf,overrunning"
    heir = workers.start(everything, **flags)
    lapsed = _lapsed_until_empty(conn, [sessions[name] for name in _RENEWED])
    found.expect(not lapsed, f"leases that ran out: sessions {sorted(lapsed)}")
    heir.ready()
    _told_to_end(found, workers)
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")

    history.acknowledge(ids)
    events = history.events()
    found.judge(check(_without_overruns(events, overrun)))
    starts = Counter(event.job for event in events if event.what == "start")
    once = [*beside, *blockers.values()]
    for job in ids:
        times = 1 if job in once else 2
        found.expect(starts[job or 0] == times, f"job {job} was begun {starts[job or 0]} times")
    _kept(found, events)
    _named(found, events, places, blockers)
    _timed_out(bench, found, events, endless)
    found.injected += len(blockers) + len(endless) + len(overrun)
    found.jobs += len(ids)


def _held_too_long(
    bench: Bench,
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    workers: Crew,
) -> None:
    """The GIL is held for longer than the lease, as if the process were frozen; it is stopped while another one is at it."""
    holder = workers.start("holding_gil", lease=_SOON)
    lost = holder.ready()
    job = HoldingGil(seconds=_SOON * bench.chance.uniform(3.0, 4.0)).enqueue(conn)
    (began,) = history.wait_for("start")
    history.add(Event(what="frozen", process=holder.name, at=began.at))
    heir = workers.start("holding_gil")
    session = heir.ready()
    history.wait_for("start", where=by(heir.name))
    history.wait_for("session lost", where=by(holder.name))
    row = conn.execute("SELECT session_id FROM background_jobs WHERE id = %s", [job]).fetchone()
    found.stale_accepted += row != (session,)
    eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
    _told_to_end(found, workers)
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")
    found.judge(history.check([job]))
    rescued = history.events("rescued", where=by(heir.name))
    found.expect([event.session for event in rescued] == [lost], f"rescued: {rescued}")
    found.injected += 1
    found.jobs += 1


def _without_overruns(events: list[Event], overrun: list[int | None]) -> list[Event]:
    """An attempt that returned after its time was not one that finished."""
    return [
        msgspec.structs.replace(event, what="broken")
        if event.what == "end" and event.job in overrun and event.text == "attempt 1"
        else event
        for event in events
    ]


def _lapsed_until_empty(conn: psycopg.Connection[Any], sessions: list[int]) -> set[int]:
    """Which of the sessions had no valid lease at some time before all jobs were done."""
    lapsed: set[int] = set()
    query = "SELECT id FROM worker_sessions WHERE id = ANY(%s) AND alive AND lease_until > now()"

    def done() -> bool:
        valid = {session for (session,) in conn.execute(query, [sessions])}
        lapsed.update(set(sessions) - valid)
        return left(conn)["background_jobs"] == 0

    eventually(done, _PATIENCE)
    return lapsed


def _told_to_end(found: Found, workers: Crew) -> None:
    for member in workers.members:
        member.send(signal.SIGTERM)
    exits = [member.wait() for member in workers.members]
    found.expect(not any(exits), f"the processes ended with {exits}")


def _kept(found: Found, events: list[Event]) -> None:
    """No session was taken for dead, and no write was refused."""
    for event in events:
        found.expect(
            event.what not in ("fenced", "session lost", "rescued"),
            f"{event.process}: {event.what}, session {event.session}, job {event.job}",
        )


def _named(
    found: Found,
    events: list[Event],
    places: dict[str, WorkerProcess],
    blockers: dict[str, int | None],
) -> None:
    """The log says which job it was, and the line it stood at."""
    for name, where in _PLACES.items():
        said = [
            event.text
            for event in events
            if event.what == "log"
            and event.process == places[name].name
            and "CRITICAL" in event.text
        ]
        found.expect(
            any(f"{blockers[name]} ({name})" in text and where in text for text in said),
            f"{name} is not named in the log with its stack: {said}",
        )


def _timed_out(bench: Bench, found: Found, events: list[Event], endless: list[int | None]) -> None:
    """What could be ended was, in time."""
    began = {event.token: event for event in events if event.what == "start"}
    for event in events:
        if event.what == "broken" and event.job in endless:
            # half of them, in order, are deaf
            kind = "endless" if endless.index(event.job) < len(endless) // 2 else "deaf"
            late = event.at - began[event.token].at - TIMEOUT
            found.recovered(late, within=_WITHIN[kind] * bench.margin)
    broken = {event.job for event in events if event.what == "broken"}
    found.expect(broken == set(endless), f"ended by their timeout: {sorted(broken)}, not {endless}")


def _crowd(
    bench: Bench,
    found: Found,
    conn: psycopg.Connection[Any],
    history: History,
    workers: Crew,
) -> None:
    """Many of those that leave something behind, with innocent ones in between, on few workers."""
    number = bench.pick(full=250, quick=50, tiny=8)
    hows = ("waits", "returns", "later", "scope")
    bad: list[Any] = [Cancelling(how=how) for how in hows for _ in range(number)]
    bad += [kind(key=key) for kind in (Leaving, LeavingInThread) for key in range(number)]
    good: list[Any] = [kind(key=key, seconds=0.005) for kind in _GOOD for key in range(4 * number)]
    jobs = [*bad, *good]
    bench.chance.shuffle(jobs)
    with conn.transaction():
        ids = {job.enqueue(conn): job for job in jobs}
    types = ",".join(sorted({type(job).job_name for job in jobs}))
    for _ in range(2):
        workers.start(types, workers=3)
    eventually(lambda: left(conn)["background_jobs"] == 0, _PATIENCE)
    _told_to_end(found, workers)
    found.expect(not any(left(conn).values()), f"the tables are not empty: {left(conn)}")

    events = history.events()
    found.judge(history.check(ids))
    _kept(found, events)
    times: Counter[int] = Counter()
    for event in history.events("start"):
        if isinstance(ids[event.job], _GOOD):
            times[event.job] += 1
            # a cancellation that comes later hits whoever runs there then; every other time that is believed
            found.expect(
                event.text in [f"attempt {n + 1}" for n in range((times[event.job] + 1) // 2)],
                f"innocent job {event.job} saw, when it was begun for time {times[event.job]}: {event.text}",
            )
    again = sum(count - 1 for count in times.values())
    found.expect(again <= number, f"{again} were hit by the cancellations of {number} others")
    found.injected += len(bad)
    found.jobs += len(jobs)
