"""Fault 22: workers that know different job types on one queue. Rule 6; guarantee 7. The rest is in rows/versions.py."""

from __future__ import annotations

import psycopg

from tests.helpers.fault_jobs import Brief, Held, Later
from tests.helpers.history import History, by
from tests.helpers.processes import Crew
from tests.helpers.runners import eventually, left


def test_workers_with_different_job_types_share_a_queue(
    conn: psycopg.Connection, workers: Crew, history: History
) -> None:
    """Rule 6: each runs its own types, and one of them takes over what the other one's death left behind."""
    one, two = workers.start("brief,held"), workers.start("later,held")
    one.ready()
    two.ready()
    brief, later, held = [], [], []
    for round_number in range(10):
        brief += Brief.enqueue_batch(conn, [Brief(key=round_number) for _ in range(10)])
        later += Later.enqueue_batch(conn, [Later(key=round_number) for _ in range(10)])
    history.wait_for("end", count=len(brief) + len(later))
    # written as well: nobody else could run what is given back of these
    eventually(lambda: left(conn)["background_jobs"] == 0)
    held += Held.enqueue_batch(conn, [Held(key=key) for key in range(8)])
    history.wait_for("start", count=len(brief) + len(later) + len(held))

    one.kill()
    two.open()

    eventually(lambda: left(conn)["background_jobs"] == 0)
    starts = history.events("start")
    assert {event.process for event in starts if event.job in brief} == {one.name}
    assert {event.process for event in starts if event.job in later} == {two.name}
    assert {event.job for event in history.events("end", where=by(two.name))} == {*later, *held}
    assert history.check([*brief, *later, *held]).lost == []
