"""A value that must be seen nowhere, sent on every way that something is told: it is looked for in all of them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import msgspec
import psycopg
import pydantic
import pytest
import sentry_sdk
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from tests.conftest import AsyncPool
from tests.helpers.running import drain
from workers import BackgroundJob, Cancel, Discard, Secret, Snooze, current_job, telemetry
from workers.cli import logs
from workers.job import ClaimedJob
from workers.storage import open_storage

CANARY = "sparrow'finch\""
PASSWORD = "hunter2"
DSN = f"postgresql://shop:{PASSWORD}@db.invalid/shop"
#: Pieces that stay as they are, however the whole is quoted.
PIECES = ("sparrow", "finch", PASSWORD)


class Told(Transport):
    """Everything that anybody was told."""

    def __init__(self) -> None:
        super().__init__()
        self.log = {"plain": io.StringIO(), "text": io.StringIO(), "json": io.StringIO()}
        self.records: list[str] = []
        self.events: list[str] = []
        self.sent: list[dict[str, Any]] = []
        self.kinds: set[str] = set()

    def capture_envelope(self, envelope: Envelope) -> None:
        for item in envelope.items:
            if (event := item.get_event()) is not None:
                self.sent.append(cast(dict[str, Any], event))

    def hear(self, event: telemetry.Event) -> None:
        """All that is in an event, and all that an exception in it says."""
        self.kinds.add(type(event).__name__)
        self.events.append(self._in_full(event))

    def note(self, record: logging.LogRecord) -> bool:
        """All that a record carries, whatever a handler would make of it."""
        self.records.append(self._in_full(vars(record)))
        return True

    def _in_full(self, value: Any) -> str:
        if isinstance(value, BaseException):
            return "".join(traceback.format_exception(value)) + repr(value) + repr(value.args)
        if isinstance(value, msgspec.Struct):
            return repr(value) + self._in_full(list(msgspec.structs.asdict(value).values()))
        if isinstance(value, dict):
            return self._in_full([*value, *value.values()])
        if isinstance(value, list | tuple):
            return "\n".join(map(self._in_full, value))
        return repr(value)

    def everything(self) -> str:
        logged = [stream.getvalue() for stream in self.log.values()]
        return "\n".join([*logged, *self.records, *self.events, json.dumps(self.sent)])


@pytest.fixture
def told() -> Iterator[Told]:
    """Logs at every level, in three formats; all of telemetry; what Sentry is sent, with local variables."""
    heard, root = Told(), logging.getLogger()
    formats = {"plain": logging.Formatter(), "text": logs._Text(), "json": logs._Json()}
    handlers = [logging.StreamHandler(stream) for stream in heard.log.values()]
    for handler, name in zip(handlers, heard.log, strict=True):
        handler.setFormatter(formats[name])
        handler.addFilter(heard.note)
        root.addHandler(handler)
    levels = root.level, logging.getLogger("psycopg").level
    logging.getLogger("psycopg").setLevel(logging.WARNING)
    root.setLevel(logging.DEBUG)
    sentry_sdk.init(
        "https://key@sentry.invalid/1", transport=heard, auto_enabling_integrations=False
    )
    with telemetry.subscribe(heard.hear):
        yield heard
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)
    for handler in handlers:
        root.removeHandler(handler)
    root.setLevel(levels[0])
    logging.getLogger("psycopg").setLevel(levels[1])


@dataclass
class Key:
    text: str


class Careless(BackgroundJob[None]):
    """Tells its secret in every way that an exception has."""

    max_attempts = 2
    backoff = 0

    how: str
    token: Secret[str]
    key: Secret[Key]
    plain: str = "plain"

    async def run(self, ctx: None) -> None:
        self.tell()

    def tell(self) -> None:
        token = self.token  # a local variable, which Sentry sends
        sentry_sdk.add_breadcrumb(message=f"with {token}", data={"token": token})
        match self.how:
            case "value":
                raise ValueError(f"{token} is wrong")
            case "key":
                raise KeyError(self.key.text)
            case "shown":
                raise ValueError(self, current_job())
            case "cause":
                try:
                    raise KeyError(token)
                except KeyError as error:
                    raise ValueError("wrong") from error
            case "group":
                raise ExceptionGroup(f"of {token}", [ValueError(token), ValueError("x")])
            case "note":
                noted = ValueError("wrong")
                noted.add_note(token)
                raise noted
            case "long":
                raise ValueError("x" * 1328 + token + "y" * 6000)  # the cut would go through it
            case "system_exit":
                raise SystemExit(token)
            case "discard":
                raise Discard(f"{token} is gone")
            case "cancel":
                raise Cancel(f"{token} is not wanted")
            case "snooze":
                raise Snooze(3600)
            case "captured":
                sentry_sdk.set_tag("token", token)
                sentry_sdk.capture_exception(ValueError(token))
                sentry_sdk.capture_message(f"about {token}")
                raise ValueError("nothing is said here")
            case "password":
                raise ConnectionError(f"no answer from {DSN}")


class CarelessInThread(Careless):
    def run(self, ctx: None) -> None:  # type: ignore[override]  # a thread instead
        self.tell()


class CarelessInTransaction(Careless):
    transactional = True


class CarelessInTransactionInThread(CarelessInThread):
    transactional = True


class CarelessInHaste(Careless):
    """Tells it while it is stopped at its timeout, and where something else is cancelled."""

    max_attempts = 1
    timeout = 0.1

    async def run(self, ctx: None) -> None:
        token = self.token
        if self.how == "other":
            (other := asyncio.create_task(asyncio.sleep(60))).cancel(f"{token} is over")
            await other
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            raise ValueError(f"{token} is late") from None


def keep(job: ClaimedJob) -> bool:
    raise ValueError(job.data, job)


class KeepsCarelessly(BackgroundJob[None]):
    archive = staticmethod(keep)

    token: Secret[str]

    async def run(self, ctx: None) -> None: ...


class KeepsCarelesslyInTransaction(KeepsCarelessly):
    transactional = True


class LogsCarelessly(BackgroundJob[None]):
    token: Secret[str]

    async def run(self, ctx: None) -> None:
        logging.getLogger("careless").warning("with %s", self.token, extra={"more": self.token})


class ChecksCarelessly(BackgroundJob[None]):
    token: Secret[str]

    def __post_init__(self) -> None:
        if self.token != "fine":
            raise ValueError(f"{self.token} is not fine")

    async def run(self, ctx: None) -> None: ...


HOW = [
    "value",
    "key",
    "shown",
    "cause",
    "group",
    "note",
    "long",
    "system_exit",
    "discard",
    "cancel",
    "snooze",
    "captured",
    "password",
]
TABLES = {
    "background_jobs": "last_error",
    "dead_jobs": "concat(reason, last_error)",
    "archived_jobs": "concat(reason, last_error)",
}


def texts(conn: psycopg.Connection) -> dict[str, str]:
    """What stands in the tables besides payloads, by the way in which it was told."""
    return {
        how: str(text)
        for table, texts in TABLES.items()
        for how, text in conn.execute(f"SELECT data->>'how', {texts} FROM {table}".encode())
    }


def payloads(conn: psycopg.Connection) -> set[str]:
    """All values of tokens in the tables."""
    return {
        token
        for table in TABLES
        for (token,) in conn.execute(f"SELECT data->>'token' FROM {table}".encode())
    }


def assert_untold(conn: psycopg.Connection, told: Told) -> None:
    for text in (told.everything(), "\n".join(texts(conn).values())):
        for piece in PIECES:
            at = text.find(piece)
            assert at < 0, text[max(0, at - 300) : at + 100]


@pytest.mark.parametrize(
    "job_class",
    [Careless, CarelessInThread, CarelessInTransaction, CarelessInTransactionInThread],
)
async def test_what_a_job_says(
    conn: psycopg.Connection, pool: AsyncPool, told: Told, job_class: type[Careless]
) -> None:
    jobs = [job_class(how=how, token=CANARY, key=Key(CANARY)) for how in HOW]
    job_class.enqueue_batch(conn, jobs)
    await drain(pool, job_class, workers=1)
    assert_untold(conn, told)
    found = texts(conn)
    assert found.keys() == set(HOW)
    quiet = {"snooze", "captured"}
    assert all("***" in found[how] for how in set(HOW) - quiet)
    assert {"JobStarted", "JobFinished", "JobDied"} <= told.kinds
    assert len(told.sent) > len(HOW) - len({"cancel", "snooze"})
    assert '"plain"' in told.everything().replace("\\", "")  # what is not marked is there
    assert '"vars"' not in json.dumps(told.sent), "a local variable may hold a piece of it"
    assert payloads(conn) == {CANARY}, "it is stored as it is"


async def test_what_is_said_where_something_takes_too_long(
    conn: psycopg.Connection, pool: AsyncPool, told: Told
) -> None:
    for how in ("other", "timeout"):
        CarelessInHaste(how=how, token=CANARY, key=Key(CANARY)).enqueue(conn)
    await drain(pool, CarelessInHaste)
    assert_untold(conn, told)
    found = texts(conn)
    assert "CancelledError: *** is over" in found["other"]
    assert "ValueError: *** is late" in found["timeout"]
    assert "*** is late" in json.dumps(told.sent)


@pytest.mark.parametrize("job_class", [KeepsCarelessly, KeepsCarelesslyInTransaction])
async def test_what_an_archive_policy_says(
    conn: psycopg.Connection, pool: AsyncPool, told: Told, job_class: type[KeepsCarelessly]
) -> None:
    job_class(token=CANARY).enqueue(conn)
    await drain(pool, job_class)
    assert_untold(conn, told)
    assert "its archive policy raised" in told.everything()


@pytest.mark.parametrize(
    "data",
    [
        {"token": CANARY},
        {"token": [CANARY]},
        {"token": {CANARY: CANARY}},
        {"token": CANARY, "more": 10**400},
        [CANARY],
        CANARY,
    ],
    ids=str,
)
async def test_what_is_said_of_a_payload_that_does_not_fit(
    conn: psycopg.Connection, pool: AsyncPool, told: Told, data: object
) -> None:
    conn.execute(
        "INSERT INTO background_jobs (job_type, data, priority) VALUES ('checks_carelessly', %s, 0)",
        [json.dumps(data)],
    )
    await drain(pool, ChecksCarelessly)
    assert_untold(conn, told)
    assert "JobDied" in told.kinds
    assert told.sent


async def test_what_sentrys_own_logs_say(conn: psycopg.Connection, pool: AsyncPool) -> None:
    """They pass no event processor; and what the application does with them is done afterwards."""
    seen: list[Any] = []
    sentry_sdk.init(
        "https://key@sentry.invalid/1",
        transport=Told(),
        auto_enabling_integrations=False,
        enable_logs=True,
        before_send_log=lambda log, hint: seen.append(log),
    )
    LogsCarelessly(token=CANARY).enqueue(conn)
    await drain(pool, LogsCarelessly)
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)
    text = str([log for log in seen if "careless" in str(log)])
    assert "'body': 'with ***'" in text
    assert "finch" not in text


class Login(pydantic.BaseModel):
    key: str
    region: str


class LogsIn(BackgroundJob[None]):
    login: Secret[Login]

    async def run(self, ctx: None) -> None: ...


async def test_what_a_model_says_of_a_payload_that_does_not_fit(
    conn: psycopg.Connection, pool: AsyncPool, told: Told
) -> None:
    """Pydantic quotes the beginning and the end of it, which is not what is looked for."""
    key = "sk_live_51H8abcdefghijklmnopqrstuvwxyz0123456789"
    conn.execute(
        "INSERT INTO background_jobs (job_type, data, priority) VALUES ('logs_in', %s, 0)",
        [json.dumps({"login": {"key": key}})],
    )
    await drain(pool, LogsIn)
    ((reason, error),) = conn.execute("SELECT reason, last_error FROM dead_jobs").fetchall()
    assert "region" in reason
    for text in (told.everything(), f"{reason} {error}"):
        assert key[:10] not in text
        assert key[-10:] not in text


async def test_what_a_subscriber_says(
    conn: psycopg.Connection, pool: AsyncPool, told: Told
) -> None:
    def tell(event: telemetry.JobFinished) -> None:
        raise ValueError(event, event.job.data)

    Careless(how="value", token=CANARY, key=Key(CANARY)).enqueue(conn)
    with telemetry.subscribe(tell, telemetry.JobFinished):
        await drain(pool, Careless, workers=1)
    assert "a telemetry subscriber failed" in told.everything()
    assert_untold(conn, told)


async def test_what_a_hook_says(
    conn: psycopg.Connection, pool: AsyncPool, told: Told, monkeypatch: pytest.MonkeyPatch
) -> None:
    def tell(job: ClaimedJob) -> None:
        raise ValueError(job, job.data)

    monkeypatch.setattr(telemetry, "job_context_hooks", [*telemetry.job_context_hooks, tell])
    Careless(how="value", token=CANARY, key=Key(CANARY)).enqueue(conn)
    await drain(pool, Careless, workers=1)
    assert "a hook for job contexts failed" in told.everything()
    assert_untold(conn, told)


async def test_what_its_owner_asks_for_is_shown_as_it_is(
    conn: psycopg.Connection, pool: AsyncPool
) -> None:
    job_id = Careless(how="", token=CANARY, key=Key(CANARY)).enqueue(conn)
    async with open_storage(pool) as storage:
        record = await storage.find(job_id or 0)
    assert record is not None
    assert json.loads(record.data)["token"] == CANARY
    assert CANARY not in repr(record)


def test_what_is_logged_of_runners_has_no_password(told: Told) -> None:
    """A pool's own code may raise with a connection string in it."""
    logger = logging.getLogger("workers")
    try:
        raise ConnectionError(f"no answer from {DSN}")
    except ConnectionError as error:
        logger.critical("the runner dies: %r", error, exc_info=True)
    logger.warning("%s at %d", DSN, 1)
    text = told.log["text"].getvalue() + told.log["json"].getvalue()
    [sent] = told.sent
    assert (
        sent["exception"]["values"][0]["value"]
        == "no answer from postgresql://shop:***@db.invalid/shop"
    )
    # the frames are this test's own, with local variables
    text += told.log["plain"].getvalue() + json.dumps(sent["logentry"])
    assert PASSWORD not in text
    assert text.count("postgresql://shop:***@db.invalid/shop") >= 6
