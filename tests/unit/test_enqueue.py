"""What `enqueue` and `enqueue_batch` write, and what they refuse before anything is sent."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import field
from datetime import UTC, datetime, timedelta
from types import CoroutineType
from typing import Any

import asyncpg  # type: ignore[import-untyped]  # publishes no types
import django.db
import psycopg2.extensions  # type: ignore[import-untyped]  # publishes no types
import pytest
from django.db.backends.utils import CursorWrapper
from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import sessionmaker
from sqlalchemy.pool.base import _ConnectionFairy

from workers import BackgroundJob, InvalidJobError, Priority, UnsupportedConnectionError
from workers._connection_advice import advice_on
from workers.job import NewJob
from workers.storage.base import Storage


class Quiet(BackgroundJob[Any]):
    """A base with a run method."""

    async def run(self, ctx: Any) -> None: ...


class SendEmail(Quiet):
    queue = "emails"
    priority = Priority.HIGH

    to: str
    subject: str = "Welcome!"
    copies: list[str] = field(default_factory=list)


class Store(Storage):
    """Remembers what it was given; of the port it has what `enqueue` needs."""

    def __init__(self) -> None:
        self.jobs: list[NewJob] = []

    async def enqueue(self, jobs: Sequence[NewJob]) -> list[int | None]:
        self.jobs += jobs
        return list(range(1, len(jobs) + 1))


def new_store() -> Any:
    return Store()  # type: ignore[abstract]  # the rest of the port is of no use here


async def test_enqueue_writes_what_the_class_says() -> None:
    store = new_store()
    assert await SendEmail(to="a").enqueue(store) == 1
    data = '{"to":"a","subject":"Welcome!","copies":[]}'
    assert store.jobs == [NewJob(job_type="send_email", data=data, queue="emails", priority=10)]


async def test_the_keywords_override_it() -> None:
    store = new_store()
    when = datetime(2999, 1, 1, tzinfo=UTC)
    await Quiet().enqueue(store, priority=Priority.LOW, queue="slow", run_at=when)
    await Quiet().enqueue(store, delay=timedelta(minutes=1))
    await Quiet().enqueue(store, delay=2, priority=0)
    late = NewJob(job_type="quiet", data="{}", queue="slow", priority=-10, run_at=when)
    waits = [
        NewJob(job_type="quiet", data="{}", queue="default", delay=delay) for delay in (60.0, 2.0)
    ]
    assert store.jobs == [late, *waits]


async def test_a_batch_is_one_call() -> None:
    class Unique(Quiet):
        deduplicated = True

        number: int

    store = new_store()
    assert await Unique.enqueue_batch(store, (Unique(number=n) for n in (5, 6))) == [1, 2]
    assert [(job.data, job.deduplicated) for job in store.jobs] == [
        ('{"number":5}', True),
        ('{"number":6}', True),
    ]
    assert await Unique(number=7).enqueue(store) == 1
    assert store.jobs[-1].deduplicated
    assert await Unique.enqueue_batch(store, []) == []


async def test_what_makes_jobs_may_use_its_objects_again() -> None:
    """Each is written as it was when it came."""

    class Chunk(Quiet):
        numbers: list[int]

    def chunks() -> Iterator[Chunk]:
        numbers: list[int] = []
        chunk = Chunk(numbers=numbers)
        for number in range(3):
            numbers.append(number)
            yield chunk
            numbers.clear()

    store = new_store()
    await Chunk.enqueue_batch(store, chunks())
    assert [job.data for job in store.jobs] == [f'{{"numbers":[{number}]}}' for number in range(3)]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"run_at": datetime(2999, 1, 1)}, "run_at has no time zone"),
    ({"run_at": "tomorrow"}, "run_at is a str: use an aware datetime"),
    ({"run_at": datetime(2999, 1, 1, tzinfo=UTC), "delay": 1}, "run_at or delay, not both"),
    ({"delay": -1}, "delay is -1: it must be finite and 0 or more"),
    ({"delay": timedelta(seconds=-1)}, "delay is -1"),
    ({"delay": float("nan")}, "delay is nan"),
    ({"delay": timedelta(days=40_000)}, "delay is over 100 years"),
    ({"delay": 10**400}, "delay is over 100 years, which is too long"),
    ({"delay": True}, "delay is a bool"),
    ({"priority": 32_768}, "priority is out of range"),
    ({"priority": "HIGH"}, "priority is a str"),
    ({"priority": True}, "priority is a bool"),
    ({"queue": ""}, "queue is ''"),
    ({"queue": "a b"}, "queue is 'a b'"),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_wrong_options_are_refused_at_the_call(options: dict[str, Any], message: str) -> None:
    store = new_store()
    with pytest.raises(InvalidJobError, match=f"job 'quiet': .*{message}"):
        _ = Quiet().enqueue(store, **options)
    with pytest.raises(InvalidJobError, match=message):
        _ = Quiet.enqueue_batch(store, [], **options)
    assert store.jobs == []


def test_wrong_payloads_are_refused_at_the_call() -> None:
    store = new_store()
    wrong: Any = {"to": 1}
    with pytest.raises(InvalidJobError, match="job 'send_email', field `to`"):
        _ = SendEmail(**wrong).enqueue(store)
    with pytest.raises(InvalidJobError, match=r"jobs\[1\]: job 'send_email', field `to`"):
        _ = SendEmail.enqueue_batch(store, [SendEmail(to="a"), SendEmail(**wrong)])
    assert store.jobs == []


@pytest.mark.parametrize("stranger", [Quiet(), object(), None])
def test_a_batch_is_of_one_class(stranger: Any) -> None:
    class Below(SendEmail): ...

    store = new_store()
    with pytest.raises(InvalidJobError, match=r"jobs\[1\] is a \w+: a batch of SendEmail takes"):
        _ = SendEmail.enqueue_batch(store, [SendEmail(to="a"), stranger])
    with pytest.raises(InvalidJobError, match=r"jobs\[0\] is a .*Below"):
        _ = SendEmail.enqueue_batch(store, [Below(to="a")])


def test_a_batch_of_several_classes_is_refused_with_advice() -> None:
    with pytest.raises(
        InvalidJobError, match=r"BackgroundJob\.enqueue_batch: call it on one class"
    ):
        _ = BackgroundJob.enqueue_batch(new_store(), [Quiet(), SendEmail(to="a")])


@pytest.mark.parametrize(
    ("conn", "message"),
    [
        ("postgresql://user:hidden@host/db", "str. A string is no connection: connect first"),
        (None, "NoneType. Connect first"),
        (object(), r"object\. What works: a psycopg connection, .*workers_enqueue"),
        (Quiet, "type. What works"),
    ],
)
def test_what_is_no_connection(conn: Any, message: str) -> None:
    with pytest.raises(
        UnsupportedConnectionError, match=f"(?i)can't enqueue on .*{message}"
    ) as caught:
        Quiet().enqueue(conn)
    assert "hidden" not in str(caught.value)
    with pytest.raises(UnsupportedConnectionError):
        Quiet.enqueue_batch(conn, [])


@contextmanager
def lent() -> Iterator[None]:
    yield


@asynccontextmanager
async def lent_asynchronously() -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Engine, "with engine.begin() as conn: job.enqueue(conn)"),
        (AsyncEngine, "async with engine.begin() as conn: await job.enqueue(conn)"),
        (sessionmaker, "`with Session.begin() as session"),
        (async_sessionmaker, "`async with Session.begin() as session"),
        (_ConnectionFairy, "run SELECT workers_enqueue("),
        (psycopg2.extensions.connection, "run SELECT workers_enqueue("),
        (psycopg2.extensions.cursor, "run SELECT workers_enqueue("),
        (asyncpg.Connection, "run SELECT workers_enqueue("),
        (asyncpg.Pool, "run SELECT workers_enqueue("),
        (type(django.db.connections), "connections['default']"),
        (CursorWrapper, "django.db.connection"),
        (type(lent()), "Enter it: `with"),
        (type(lent_asynchronously()), "Enter it: `async with"),
        (CoroutineType, "Await it first"),
    ],
)
def test_what_is_almost_a_connection_gets_advice(kind: type, message: str) -> None:
    assert message in advice_on(kind)


@pytest.mark.parametrize("method", ["enqueue", "enqueue_batch"])
def test_a_forgotten_await_is_named_as_the_user_wrote_it(method: str) -> None:
    store = new_store()
    forgotten: Any = (
        Quiet().enqueue(store) if method == "enqueue" else Quiet.enqueue_batch(store, [Quiet()])
    )
    with pytest.warns(RuntimeWarning, match=rf"coroutine 'Quiet\.{method}' was never awaited"):
        del forgotten
    assert store.jobs == []


def test_no_optional_library_is_imported() -> None:
    program = (
        "import sys, workers, workers.connections; "
        "print({'sqlalchemy', 'django', 'pydantic', 'asyncpg', 'psycopg2'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "set()\n"
