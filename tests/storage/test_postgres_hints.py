"""Scan hints on a real queue: rows that commit late lie behind the hint, and are found (rule 11)."""

from __future__ import annotations

import anyio
import psycopg
import pytest

from tests.storage.engines import PostgresEngine, ids, mails
from workers.storage.base import Wake
from workers.storage.postgres import hints
from workers.storage.postgres.hints import ScanHints

LATE = "SELECT workers_enqueue('mail', '{}', 'default')"


async def test_a_late_commit_is_found_by_its_notification(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 11: sequence order is not commit order; the notification pulls the hint back."""
    runner = postgres.runner()
    async with aconn.transaction():
        row = await (await aconn.execute(LATE)).fetchone()
        assert row is not None
        last = "SELECT last_value FROM background_jobs_position_seq"
        position = postgres.conn.execute(last).fetchone()
        assert position is not None
        later = await postgres.storage.enqueue(mails(2))
        assert ids(await runner.take(5)) == later
    assert await runner.take(thorough=False) == []
    postgres.storage.noticed(Wake("default", 0, position[0]))
    assert ids(await runner.take(thorough=False)) == [row[0]]


async def test_a_late_commit_is_found_without_one(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 11: with notifications switched off, within about a second."""
    runner = postgres.runner()
    async with aconn.transaction():
        row = await (await aconn.execute(LATE)).fetchone()
        assert row is not None
        later = await postgres.storage.enqueue(mails(2))
        assert ids(await runner.take(5)) == later
    found: list[int] = []
    begun = postgres.now
    while not found:
        found = ids(await runner.take(thorough=False))
    assert found == [row[0]]
    assert postgres.now - begun <= 1.5


async def test_a_commit_almost_three_seconds_late_is_found_without_a_notification(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rule 11: by a trailing scan, though thorough ones cost too much to be made now."""
    monkeypatch.setattr(hints, "THOROUGH_SHARE", 1_000_000)
    runner = postgres.runner()
    for thorough in (True, False):
        await postgres.storage.enqueue(mails(1))
        assert len(await runner.take(thorough=thorough)) == 1
    async with aconn.transaction():
        row = await (await aconn.execute(LATE)).fetchone()
        assert row is not None
        for _ in range(3):
            await postgres.storage.enqueue(mails(2))
            assert len(await runner.take(thorough=False)) == 2
            postgres.now += 0.9
    found: list[int] = []
    begun = postgres.now
    while not found:
        found = ids(await runner.take(thorough=False))
        assert postgres.now - begun <= 1.5
    assert found == [row[0]]


async def test_only_a_thorough_scan_has_seen_the_whole_queue(postgres: PostgresEngine) -> None:
    """Rule 11: "empty" is not concluded from a hint."""
    runner = postgres.runner()
    await postgres.storage.enqueue(mails(2))
    assert (await runner.claim(5)).complete
    assert not (await runner.claim(5, thorough=False)).complete


async def test_what_nobody_heard_of_does_not_stay_behind_what_is_heard(
    postgres: PostgresEngine,
) -> None:
    """Rule 11: jobs enqueued before the listener was there lie before the first position that it hears of."""
    runner = postgres.runner()
    assert await runner.take(thorough=False) == []
    unheard = await postgres.storage.enqueue(mails(2))
    (heard,) = await postgres.storage.enqueue(mails(1))
    row = postgres.conn.execute(
        "SELECT position FROM background_jobs WHERE id = %s", [heard]
    ).fetchone()
    assert row is not None
    postgres.storage.noticed(Wake("default", 0, row[0]))
    postgres.storage.noticed(Wake(unheard=True))
    assert ids(await runner.take(thorough=False)) == [*unheard, heard]


async def test_a_notification_of_an_unknown_queue_is_nothing(postgres: PostgresEngine) -> None:
    """Rule 27: hints are kept for the queues that are worked here."""
    runner = postgres.runner()
    for queue in ("", "elsewhere"):
        postgres.storage.noticed(Wake(queue, 3, 5))
    enqueued = await postgres.storage.enqueue(mails(1))
    assert ids(await runner.take(thorough=False)) == enqueued


async def test_what_a_second_scan_finds_is_put_where_it_belongs(postgres: PostgresEngine) -> None:
    """Rule 5: a priority that nobody has announced is found by the thorough scan that follows, and goes first."""
    runner = postgres.runner()
    await postgres.storage.enqueue(mails(2, priority=9))
    await runner.take(2)  # ended at its limit: of other priorities it saw nothing
    unheard = await postgres.storage.enqueue(mails(1, priority=12))
    known = await postgres.storage.enqueue(mails(1, priority=9))
    hints: ScanHints = postgres.storage._claims._hints["default"]  # type: ignore[attr-defined]
    hints._duration = 0.0  # however busy the machine is, it was no long scan
    assert ids(await runner.take(5, thorough=False)) == [*unheard, *known]


async def test_jobs_in_hand_do_not_wait_for_a_long_scan(postgres: PostgresEngine) -> None:
    """Rule 11: while dead entries make it take long, the thorough scan is made by the next claim, at once."""
    runner = postgres.runner()
    await postgres.storage.enqueue(mails(2, priority=9))
    await runner.take(2)
    unheard = await postgres.storage.enqueue(mails(1, priority=12))
    known = await postgres.storage.enqueue(mails(1, priority=9))
    hints: ScanHints = postgres.storage._claims._hints["default"]  # type: ignore[attr-defined]
    hints._duration = 1.0
    first = await runner.claim(5, thorough=False)
    assert (ids(first.jobs), first.complete, first.more) == (known, False, True)
    second = await runner.claim(5, thorough=False)
    assert (ids(second.jobs), second.complete, second.more) == (unheard, True, False)


async def test_a_claim_that_waited_for_the_table_hides_nothing_from_the_next(
    postgres: PostgresEngine, aconn: psycopg.AsyncConnection
) -> None:
    """Rule 11: jobs of a new priority, of which nobody has heard, are found as soon as before."""
    runner = postgres.runner()
    await postgres.storage.enqueue(mails(1))
    assert len(await runner.take(thorough=False)) == 1
    async with anyio.create_task_group() as tasks, aconn.transaction():
        await aconn.execute("LOCK TABLE background_jobs")
        tasks.start_soon(runner.claim)
        await postgres.wait_blocked()
        postgres.now += 2.0
    unheard = await postgres.storage.enqueue(mails(1, priority=5))
    begun, found = postgres.now, list[int]()
    while not found:
        found = ids(await runner.take(thorough=False))
        # not fifty times the two seconds; by this clock an ordinary scan takes one to three hundredths
        assert postgres.now - begun <= 5.0
    assert found == unheard
