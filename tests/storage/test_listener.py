"""Wake-ups: who is told what, and how a deaf or dead listener shows (rule 27)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import anyio
import psycopg
import pytest

from tests.helpers.proxy import proxy_to
from tests.helpers.server import connection_url
from tests.storage.ear import LONG, Ear
from tests.storage.engines import Engine, PostgresEngine, Runner, ids, mail, mails
from workers.errors import StorageUnavailableError
from workers.lifecycle import Bury, Release, Retry, Wait
from workers.storage.postgres.links import AsyncLink
from workers.storage.postgres.listener import PostgresListener


@pytest.fixture
async def ear(engine: Engine) -> AsyncIterator[Ear]:
    listener = engine.storage.listener()
    assert listener is not None
    await listener.open()
    yield Ear(listener)
    await listener.close()


async def test_enqueue_wakes(engine: Engine, ear: Ear) -> None:
    """Rule 27: queue, priority and the lowest position of a batch."""
    await engine.storage.enqueue(mails(3, priority=4))
    first = await ear.hear()
    assert first is not None
    assert (first.queue, first.priority) == ("default", 4)
    await engine.storage.enqueue([mail(9, queue="a.queue", deduplicated=True)])
    second = await ear.hear()
    assert second is not None
    assert (second.queue, second.priority) == ("a.queue", 0)
    assert second.position >= first.position + 3


async def test_what_is_not_available_wakes_nobody(engine: Engine, ear: Ear) -> None:
    """Rule 27: scheduled, homeless and superseded jobs are announced when they become available."""
    await engine.storage.enqueue(
        [mail(1, delay=60), mail(2, queue=None), mail(3, deduplicated=True, delay=60)]
    )
    await engine.storage.enqueue([mail(3, deduplicated=True)])
    await engine.storage.enqueue([mail(queue="last")])
    assert await ear.where() == ("last", 0)


async def test_a_job_that_was_passed_by_is_announced_by_who_kept_it(
    database_url: str, postgres: PostgresEngine
) -> None:
    """Rule 24: claims skip what a producer has locked that was told None. Its end says where to
    look: the lowest position in each queue in which they wait."""
    listener = postgres.storage.listener()
    assert listener is not None
    await listener.open()
    ear, runner = Ear(listener), postgres.runner()
    waiting: list[int] = []
    for number, settings in enumerate([{"queue": "a"}, {"queue": "b"}, {"queue": "b"}]):
        job = mail(number, priority=3, deduplicated=True, **settings)
        waiting += [job_id or 0 for job_id in await postgres.storage.enqueue([job])]
        await ear.hear()
    await postgres.storage.enqueue([mail(3, priority=3, deduplicated=True, delay=60)])
    query = "SELECT count(id) FROM workers_enqueue_deduplicated('mail', %s, 3::smallint, %s, NULL)"
    again = [f'{{"number": {number}}}' for number in range(4)]

    async def told(data: list[str], new: int, queue: str | None) -> set[tuple[str, int, int]]:
        async with await psycopg.AsyncConnection.connect(database_url) as producer:
            cursor = await producer.execute(query, [data, queue])
            assert await cursor.fetchone() == (new,)
            assert await runner.take(queue="a") == await runner.take(queue="b") == []
        wakes = [await ear.hear(), await ear.hear()]
        return {(wake.queue, wake.priority, wake.position) for wake in wakes if wake}

    places = [postgres.position(job_id) for job_id in waiting]
    assert await told(again, 0, "c") == {("a", 3, places[0]), ("b", 3, places[1])}
    assert await told([*again, "{}"], 1, "a") == {("a", 3, places[0]), ("b", 3, places[1])}
    assert ids(await runner.take(queue="b")) == waiting[1:]
    await listener.close()


async def test_staging_release_and_requeue_wake(engine: Engine, runner: Runner, ear: Ear) -> None:
    """Rule 27: every way of becoming available is announced."""
    await engine.storage.enqueue([mail(1, delay=60, priority=1)])
    engine.advance(60)
    runner.maintain()
    assert await ear.where() == ("default", 1)
    await runner.settle(await runner.take(), Release())
    assert await ear.where() == ("default", 1)
    [job] = await runner.take()
    await runner.settle([job], Bury("over"))
    assert await engine.storage.requeue([job.id]) == [job.id]
    assert await ear.where() == ("default", 1)
    assert await runner.take(token=5000)
    assert (await engine.storage.release_claim(runner.session, 5000)).count == 1
    assert await ear.where() == ("default", 1)


async def test_rescue_wakes(engine: Engine, runner: Runner, other: Runner, ear: Ear) -> None:
    """Rule 27: the jobs of a dead runner are announced as suspects, ordinary and deduplicated ones."""
    await engine.storage.enqueue([mail(1, priority=1), mail(2, priority=2, deduplicated=True)])
    assert {await ear.where(), await ear.where()} == {("default", 1), ("default", 2)}
    await runner.take()
    await runner.crash()
    other.bury()
    told = [await ear.hear(), await ear.hear()]
    assert {(wake.queue, wake.priority, wake.suspects) for wake in told if wake} == {
        ("default", 1, True),
        ("default", 2, True),
    }


@pytest.mark.parametrize("deduplicated", [False, True])
async def test_several_are_announced_by_the_lowest_position(
    engine: Engine, runner: Runner, other: Runner, ear: Ear, deduplicated: bool
) -> None:
    """Rule 27: enough to pull a scan hint back to all of them, on every way to being available."""

    async def heard() -> None:
        wake = await ear.hear()
        assert wake is not None
        positions = sorted(engine.position(job_id) for job_id in enqueued)
        assert positions[0] < positions[1]
        assert wake.position == positions[0]

    enqueued = [
        job_id or 0 for job_id in await engine.storage.enqueue(mails(2, deduplicated=deduplicated))
    ]
    await heard()
    await runner.settle(await runner.take(), Release())
    await heard()
    await runner.settle(await runner.take(), Bury("over"))
    await engine.storage.requeue(enqueued)
    await heard()
    await runner.settle(await runner.take(), Wait(5))
    engine.advance(5)
    other.maintain()
    await heard()
    await runner.take()
    await runner.crash()
    other.bury()
    await heard()


@pytest.mark.parametrize("deduplicated", [False, True])
async def test_what_waits_for_a_time_is_not_announced(
    engine: Engine, runner: Runner, ear: Ear, deduplicated: bool
) -> None:
    """Rule 27: nobody could take it."""
    first, second = await engine.storage.enqueue(mails(2, deduplicated=deduplicated))
    await ear.hear()
    jobs = await runner.take()
    await runner.settle(jobs[:1], Retry(60.0, "boom"))
    await runner.settle(jobs[1:], Release())
    wake = await ear.hear()
    assert wake is not None
    assert wake.position == engine.position(second or 0) > engine.position(first or 0)


async def test_probe(engine: Engine, runner: Runner, ear: Ear) -> None:
    """Rule 27: a probe reaches the listener that it is meant for, and no other."""
    second = engine.storage.listener()
    assert second is not None
    await second.open()
    try:
        assert second.address != ear.listener.address
        assert runner.maintain(probe=second.address).probed
        assert runner.maintain(probe=ear.listener.address).probed
        assert not runner.maintain().probed
        assert await ear.hear() is None
        assert await Ear(second).hear() is None
        await engine.storage.enqueue(mails(1))
        assert await ear.where() == ("default", 0)
    finally:
        await second.close()


@pytest.mark.parametrize("amid", [False, True])
async def test_a_closed_listener_ends(ear: Ear, amid: bool) -> None:
    """Closing it ends the listening, or raises the port's error; it never hangs."""
    hearing = asyncio.create_task(ear.hear())
    if amid:
        await anyio.wait_all_tasks_blocked()
    await ear.listener.close()
    with pytest.raises((EOFError, StorageUnavailableError)):
        await hearing


@pytest.mark.parametrize("end", ["closed", "lost", "garbled", "cancelled", "failed"])
async def test_the_loop_forgets_the_socket(postgres: PostgresEngine, end: str) -> None:
    """Its number is soon another one's. What the hearer raises ends the listening, too."""
    with proxy_to(
        connection_url(postgres.conn.info.dsn, options=postgres.conn.info.options)
    ) as proxy:
        connect = AsyncLink.connect
        listener = PostgresListener(lambda: connect(proxy.url, autocommit=True))
        await listener.open()
        assert listener._conn is not None
        fileno, loop = listener._conn.pgconn.socket, asyncio.get_running_loop()
        listening = asyncio.create_task(listener.listen(lambda wake: 1 // 0))  # type: ignore[arg-type]
        await anyio.wait_all_tasks_blocked()
        if end == "closed":
            await listener.close()
        elif end == "lost":
            proxy.cut()
        elif end == "garbled":
            proxy.garble()
        elif end == "cancelled":
            listening.cancel()
        else:
            await postgres.storage.enqueue(mails(1))
        async with asyncio.timeout(LONG):
            await asyncio.wait([listening])
        assert not loop.remove_reader(fileno)
        assert listening.cancelled() == (end == "cancelled")
        if end not in ("closed", "cancelled"):
            expected = ZeroDivisionError if end == "failed" else StorageUnavailableError
            assert type(listening.exception()) is expected
        await listener.close()


async def test_a_lost_connection_shows(postgres: PostgresEngine) -> None:
    """Rule 27: a listener whose backend is gone raises; polling goes on."""
    listener = postgres.storage.listener()
    assert listener is not None
    await listener.open()
    postgres.conn.execute(
        "SELECT pg_terminate_backend(%s, 5000)", [int(listener.address.split()[1])]
    )
    with pytest.raises(StorageUnavailableError):
        await Ear(listener).hear()
    await listener.close()
    again = postgres.storage.listener()
    assert again is not None
    await again.open()
    await postgres.storage.enqueue(mails(1))
    assert await Ear(again).where() == ("default", 0)
    await again.close()


FOREIGN = [
    "",
    "x",
    "1",
    "1 2",
    "one two three",
    "1 0 ",
    "9223372036854775808 0 default",
    "1 99999 default",
]


@pytest.mark.parametrize("payload", FOREIGN)
async def test_foreign_notifications(postgres: PostgresEngine, payload: str) -> None:
    """Rule 27: whatever somebody else sends on the channel wakes, and never ends the stream or spoils a claim."""
    listener, runner = postgres.storage.listener(), postgres.runner()
    assert listener is not None
    await listener.open()
    assert await runner.take(thorough=False) == []
    postgres.conn.execute("SELECT pg_notify(workers_channel(), %s)", [payload])
    ear = Ear(listener)
    wake = await ear.hear()
    assert wake is not None
    postgres.storage.noticed(wake)
    await postgres.storage.enqueue(mails(2))
    assert len(await runner.take(1, thorough=False)) == 1
    postgres.storage.noticed(wake)
    assert len(await runner.take(1, thorough=False)) == 1
    assert await ear.where() == ("default", 0)
    await listener.close()


async def test_notifications_can_be_switched_off(postgres: PostgresEngine) -> None:
    """Rule 27: `workers.notify = off` leaves everything to polling."""
    listener = postgres.storage.listener()
    assert listener is not None
    await listener.open()
    with postgres.conn.transaction():
        postgres.conn.execute("SET LOCAL workers.notify = 'off'")
        postgres.conn.execute("""SELECT workers_enqueue('mail', '{}', 'quiet')""")
    postgres.conn.execute("""SELECT workers_enqueue('mail', '{}', 'loud')""")
    assert await Ear(listener).where() == ("loud", 0)
    await listener.close()
