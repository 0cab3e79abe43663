"""What Sentry hears of jobs, by the real SDK up to its transport."""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any, cast

import psycopg
import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from tests.conftest import AsyncPool
from workers import BackgroundJob, Cancel, Discard, Fixed, Runner, Snooze, sentry

PAYLOAD = "payload-4711"

Event = dict[str, Any]


class Collected(Transport):
    """Keeps every event that would be sent."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Event] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            if (event := item.get_event()) is not None:
                self.events.append(cast(Event, event))


@pytest.fixture
def events() -> Iterator[list[Event]]:
    """What was sent by an application that has initialised Sentry as most do."""
    transport = Collected()
    sentry_sdk.init(
        "https://key@sentry.invalid/1", transport=transport, auto_enabling_integrations=False
    )
    yield transport.events
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


class Fails(BackgroundJob[None]):
    max_attempts = 2
    backoff = Fixed(0)

    card: str = PAYLOAD

    async def run(self, ctx: None) -> None:
        raise ZeroDivisionError("no more")


class FailsInThread(Fails):
    def run(self, ctx: None) -> None:  # type: ignore[override]  # a thread instead
        raise ZeroDivisionError("no more")


class FailsInTransaction(Fails):
    transactional = True


class FailsInTransactionInThread(FailsInThread):
    transactional = True


class Ends(BackgroundJob[None]):
    how: str

    async def run(self, ctx: None) -> None:
        match self.how:
            case "discard":
                raise Discard("the order is gone")
            case "cancel":
                raise Cancel
            case "snooze":
                raise Snooze(3600)
            case "fail":
                raise ZeroDivisionError


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise KeyboardInterrupt


class FailsUnspeakably(BackgroundJob[None]):
    max_attempts = 1

    async def run(self, ctx: None) -> None:
        raise UnspeakableError


class Marks(BackgroundJob[None]):
    """Leaves marks in the scope, and says what it finds there."""

    name: str

    async def run(self, ctx: None) -> None:
        self.mark()

    def mark(self) -> None:
        sentry_sdk.capture_message(f"before {self.name}")
        sentry_sdk.set_tag("marked_by", self.name)
        sentry_sdk.get_current_scope().set_tag("marked_too_by", self.name)
        sentry_sdk.add_breadcrumb(message=f"crumb of {self.name}")
        sentry_sdk.capture_message(f"after {self.name}")


class MarksInThread(Marks):
    def run(self, ctx: None) -> None:  # type: ignore[override]  # a thread instead
        self.mark()


class LogsError(BackgroundJob[None]):
    async def run(self, ctx: None) -> None:
        logging.getLogger("shop").error("out of stock")


class CapturesItself(BackgroundJob[None]):
    max_attempts = 1

    async def run(self, ctx: None) -> None:
        try:
            raise ZeroDivisionError("seen")
        except ZeroDivisionError as error:
            sentry_sdk.capture_exception(error)
            raise


async def drain(pool: AsyncPool, *job_classes: type[BackgroundJob[None]]) -> None:
    """Run what waits, one job at a time."""
    runner = Runner(pool, None).configure_default_queue(num_workers=1).shutdown_when_queue_empty()
    for job_class in job_classes:
        runner.register_job_type(job_class)
    await runner.start().wait_for_shutdown()


def crumbs(event: Event) -> list[str]:
    return [crumb["message"] for crumb in event.get("breadcrumbs", {}).get("values", ())]


def shows(events: Sequence[Event], text: str) -> bool:
    return text in json.dumps(events)


@pytest.mark.parametrize(
    "job_class", [Fails, FailsInThread, FailsInTransaction, FailsInTransactionInThread]
)
async def test_final_failure_is_captured_once(
    conn: psycopg.Connection, pool: AsyncPool, events: list[Event], job_class: type[Fails]
) -> None:
    job_id = job_class().enqueue(conn)
    await drain(pool, job_class)
    (event,) = events  # not the attempt before, and not what the log says about it
    name = job_class.job_name
    assert event["tags"] == {
        "job_type": name,
        "job_id": str(job_id),
        "queue": "default",
        "attempt": "2",
    }
    assert event["fingerprint"] == ["{{ default }}", name]
    assert (event["transaction"], event["level"]) == (name, "error")
    (exception,) = event["exception"]["values"]
    assert (exception["type"], exception["value"]) == ("ZeroDivisionError", "no more")
    assert exception["mechanism"]["handled"] is False
    (frame,) = exception["stacktrace"]["frames"]
    assert (frame["module"], frame["function"]) == (__name__, "run")
    assert "fields not shown" in frame["vars"]["self"]
    assert not shows(events, PAYLOAD)


async def test_a_death_by_timeout_shows_where_it_hung(
    conn: psycopg.Connection, pool: AsyncPool, events: list[Event]
) -> None:
    class Hangs(BackgroundJob[None]):
        max_attempts = 1
        timeout = 0.1

        async def run(self, ctx: None) -> None:
            await asyncio.sleep(60)

    Hangs().enqueue(conn)
    await drain(pool, Hangs)
    ((cause, exception),) = [event["exception"]["values"] for event in events]
    assert (exception["type"], exception["value"]) == ("TimeoutError", "timed out after 0.1 s")
    assert cause["type"] == "CancelledError"
    assert "await asyncio.sleep(60)" in [
        frame["context_line"].strip() for frame in cause["stacktrace"]["frames"]
    ]


@pytest.mark.parametrize(
    ("data", "crashes", "kind", "message"),
    [
        (f'{{"{PAYLOAD}": 1}}', 0, "undecodable", "ends is dead: its payload can't be decoded"),
        ('{"how": ""}', 5, "crashed", "ends is dead: its process died under it 5 times"),
        ('{"how": "discard"}', 0, "discarded", "ends is dead: the order is gone"),
    ],
)
async def test_death_without_exception_is_a_message(
    conn: psycopg.Connection,
    pool: AsyncPool,
    events: list[Event],
    data: str,
    crashes: int,
    kind: str,
    message: str,
) -> None:
    conn.execute(
        b"INSERT INTO background_jobs (job_type, data, priority, crashes) VALUES ('ends', %s, 0, %s)",
        (data, crashes),
    )
    with sentry_sdk.isolation_scope():
        await drain(pool, Ends)
        sentry_sdk.capture_message("the application")
    event, after = events
    assert (event["message"], event["level"]) == (message, "error")
    assert event["fingerprint"] == ["workers", "ends", kind]
    assert event["tags"]["job_type"] == "ends"
    assert not shows(events, PAYLOAD)
    assert "tags" not in after


async def test_other_ends_are_not_captured(
    conn: psycopg.Connection, pool: AsyncPool, events: list[Event]
) -> None:
    for how in ("fail", "cancel", "snooze", "succeed"):
        Ends(how=how).enqueue(conn)
    await drain(pool, Ends)
    assert events == []


async def test_exception_that_can_not_be_shown_is_captured_and_harms_nobody(
    conn: psycopg.Connection, pool: AsyncPool, events: list[Event]
) -> None:
    FailsUnspeakably.enqueue_batch(conn, [FailsUnspeakably(), FailsUnspeakably()])
    await drain(pool, FailsUnspeakably)
    assert [event["message"] for event in events] == [
        "fails_unspeakably is dead: UnspeakableError"
    ] * 2


async def test_what_the_job_captured_itself_is_not_captured_again(
    conn: psycopg.Connection, pool: AsyncPool, events: list[Event]
) -> None:
    CapturesItself().enqueue(conn)
    await drain(pool, CapturesItself)
    (event,) = events
    assert event["tags"]["job_type"] == "captures_itself"


@pytest.mark.parametrize("job_class", [Marks, MarksInThread])
async def test_each_job_has_a_scope_of_its_own(
    conn: psycopg.Connection, pool: AsyncPool, events: list[Event], job_class: type[Marks]
) -> None:
    job_class.enqueue_batch(conn, [job_class(name="one"), job_class(name="two")])
    with sentry_sdk.isolation_scope():
        sentry_sdk.set_tag("service", "shop")
        sentry_sdk.add_breadcrumb(message="crumb of the application")
        await drain(pool, job_class)
        sentry_sdk.capture_message("application")
    found = {event["message"]: event for event in events}
    for name in ("one", "two"):
        before, after = found[f"before {name}"], found[f"after {name}"]
        assert before["tags"]["service"] == "shop"
        assert before["tags"]["job_type"] == job_class.job_name
        assert "marked_by" not in before["tags"]
        assert "marked_too_by" not in before["tags"]
        assert after["tags"]["marked_by"] == after["tags"]["marked_too_by"] == name
        assert crumbs(after) == [f"crumb of {name}"]
    assert found["application"]["tags"] == {"service": "shop"}
    assert not any("crumb of one" in crumb for crumb in crumbs(found["application"]))
    traces = [event["contexts"]["trace"]["trace_id"] for event in events]
    assert len(set(traces)) == 3


async def test_runners_log_leaves_no_trace_of_jobs_in_the_application(
    conn: psycopg.Connection, pool: AsyncPool, events: list[Event]
) -> None:
    for how in ("fail", "snooze", "cancel"):
        Ends(how=how).enqueue(conn)
    with sentry_sdk.isolation_scope():
        await drain(pool, Ends)
        sentry_sdk.capture_message("the application")
    (event,) = events
    # in development mode asyncio may say that something was slow, and where
    assert [crumb for crumb in crumbs(event) if "(ends)" in crumb] == []


async def test_error_that_a_job_logs_carries_its_tags(
    conn: psycopg.Connection, pool: AsyncPool, events: list[Event]
) -> None:
    job_id = LogsError().enqueue(conn)
    await drain(pool, LogsError)
    (event,) = events
    assert event["logentry"]["message"] == "out of stock"
    assert event["tags"]["job_id"] == str(job_id)


PRODUCER = """
import json, sys
import psycopg
import sqlalchemy
from tests.helpers.django_database import django_database
from workers import BackgroundJob
from workers.storage.memory import MemoryStorage
url = sys.argv[1]

class Charge(BackgroundJob[None]):
    card: str
    amount: int = 1
    def run(self, ctx): ...

Charge(card="before", amount=2).enqueue(MemoryStorage()).close()  # the class has been used
import sentry_sdk
from sentry_sdk.transport import Transport

class Printed(Transport):
    def capture_envelope(self, envelope):
        print(*(json.dumps(item.get_event()) for item in envelope.items))

sentry_sdk.init("https://key@sentry.invalid/1", transport=Printed(), auto_enabling_integrations=False)

def unconnected(job):
    psycopg.connect("host=/nowhere")

def plain(job):
    with psycopg.connect(url) as conn:
        job.enqueue(conn)

def sqlalchemy_(job):
    engine = sqlalchemy.create_engine(url.replace("postgresql:", "postgresql+psycopg:"), hide_parameters=True)
    with engine.begin() as conn:
        job.enqueue(conn)

def django_(job):
    with django_database(url) as conn:
        job.enqueue(conn)

def bad(job):
    job.amount = "much"
    plain(job)

def late(job):
    with psycopg.connect(url) as conn:
        type(job).enqueue_batch(conn, [job], delay=-1)

def asynchronous(job):
    import asyncio
    async def enqueue():
        async with await psycopg.AsyncConnection.connect(url) as conn:
            await job.enqueue(conn)
    asyncio.run(enqueue())

try:
    globals()[sys.argv[2]](Charge(card="payload-4711"))
except Exception as error:
    sentry_sdk.capture_exception(error)
"""


@pytest.mark.parametrize(
    "how", ["unconnected", "plain", "sqlalchemy_", "django_", "bad", "late", "asynchronous"]
)
def test_a_process_that_only_enqueues_keeps_its_payloads(raw_database_url: str, how: str) -> None:
    """No job has ever run there, and the SDK was imported after the job class was used."""
    command = [sys.executable, "-c", PRODUCER, raw_database_url, how]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ended.stdout.count('"exception"') == 1, ended.stderr
    assert "Charge: fields not shown" in ended.stdout
    assert PAYLOAD not in ended.stdout


def test_what_stands_in_the_way_of_sentry_harms_no_enqueue(
    raw_database_url: str, monkeypatch: pytest.MonkeyPatch, events: list[Event]
) -> None:
    """The error that comes out is the enqueue's own."""

    class Broken:
        def __getattr__(self, name: str) -> Any:
            raise RuntimeError(name)

    monkeypatch.setattr(sentry, "_prepared", False)
    monkeypatch.setitem(sys.modules, "sentry_sdk.serializer", cast(Any, Broken()))
    with psycopg.connect(raw_database_url) as conn, pytest.raises(psycopg.errors.UndefinedTable):
        Fails().enqueue(conn)


def test_payload_of_a_failed_enqueue_stays_here(raw_database_url: str, events: list[Event]) -> None:
    with psycopg.connect(raw_database_url) as conn:
        try:
            Fails.enqueue_batch(conn, [Fails(), Fails()])
        except psycopg.errors.Error as error:
            sentry_sdk.capture_exception(error)
    (event,) = events
    modules = {
        frame["module"] for frame in event["exception"]["values"][-1]["stacktrace"]["frames"]
    }
    assert __name__ in modules
    assert any(module.startswith("workers.") for module in modules)
    assert not shows(events, PAYLOAD)
