"""Fault 3: workers that stand still past their lease and go on. (Their late writes: rows/frozen.py.)

Rules 2, 18 and 19; guarantees 2 and 4.
"""

from __future__ import annotations

import signal

import psycopg

from tests.faults.conftest import Say
from tests.helpers.fault_jobs import Brief, Held, HeldInThread
from tests.helpers.history import History, by
from tests.helpers.processes import Crew
from tests.helpers.runners import left

LEASE = 1.5
#: The lease, and the sweep of a runner that looks three times in a lease; and something for a busy machine.
RECLAIMED_WITHIN = LEASE * 4 / 3 + 1.5


def test_a_worker_that_was_frozen_past_its_lease_is_fenced(
    conn: psycopg.Connection, workers: Crew, history: History, say: Say
) -> None:
    """Rules 18 and 19: others get its jobs, what comes of its own runs changes nothing, and it works on as a new session."""
    types = "brief,held,held_in_thread"
    frozen = workers.start(types, lease=LEASE)
    first_session = frozen.ready()
    held = Held.enqueue_batch(conn, [Held(key=key) for key in range(3)])
    in_threads = HeldInThread.enqueue_batch(conn, [HeldInThread(key=key) for key in range(3)])
    history.wait_for("start", count=6)
    heir = workers.start(types, lease=LEASE)
    heir.ready()

    frozen.send(signal.SIGSTOP)
    (stopped,) = history.events("frozen")
    taken = history.wait_for("start", count=6, where=by(heir.name))
    reclaimed = max(event.at for event in taken) - stopped.at
    say(f"reclaimed {reclaimed:.2f} s after the stop, with a lease of {LEASE} s")
    assert reclaimed < RECLAIMED_WITHIN
    frozen.send(signal.SIGCONT)
    (lost,) = history.wait_for("session lost", where=by(frozen.name))
    assert lost.session > first_session
    # what can be stopped is; a thread can't be, and nothing comes of it
    stopped_jobs = history.wait_for("broken", count=3, where=by(frozen.name))
    assert {event.job for event in stopped_jobs} == set(held)
    frozen.open()
    history.wait_for("end", count=3, where=by(frozen.name))
    assert left(conn)["background_jobs"] == 6, "the heir is still at them"
    fenced = history.wait_for("fenced", count=6, where=by(frozen.name))
    assert {event.job for event in fenced} == {*held, *in_threads}
    heir.open()
    history.wait_for("end", count=6, where=by(heir.name))
    heir.send(signal.SIGTERM)
    assert heir.wait() == 0

    more = Brief.enqueue_batch(conn, [Brief(key=key) for key in range(20)])
    ended = history.wait_for("end", count=20, where=lambda event: event.job in more)
    assert {(event.process, event.session) for event in ended} == {(frozen.name, lost.session)}
    frozen.send(signal.SIGTERM)
    assert frozen.wait() == 0
    assert history.check([*held, *in_threads, *more]).lost == []
    assert left(conn) == dict.fromkeys(left(conn), 0)


def test_what_a_frozen_worker_had_claimed_in_advance_is_not_started_late(
    conn: psycopg.Connection, workers: Crew, history: History
) -> None:
    """Guarantee 2: a lease that may be over is looked after before another job is started under it."""
    frozen = workers.start("brief", lease=LEASE)
    frozen.ready()
    ids = Brief.enqueue_batch(conn, [Brief(key=key, seconds=0.001) for key in range(3000)])
    history.wait_for("start", count=500)
    frozen.send(signal.SIGSTOP)
    heir = workers.start("brief", lease=LEASE)
    history.wait_for("rescued", where=by(heir.name))
    frozen.send(signal.SIGCONT)
    (lost,) = history.wait_for("session lost", where=by(frozen.name))
    for member in workers.members:
        member.send(signal.SIGTERM)
        assert member.wait() == 0
    (woken,) = history.events("woken")
    late = history.events("start", where=by(frozen.name))
    late = [event for event in late if woken.at < event.at < lost.at]
    # the stop may fall between its look at the lease and the first line of the job: of one job, as there is one loop
    assert len(late) <= 1, late
    assert workers.start("brief", "--until-empty").wait() == 0
    assert history.check(ids).lost == []
