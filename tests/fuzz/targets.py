"""What is fuzzed: functions of bytes, which raise for what must not be."""

from __future__ import annotations

import contextlib
import math
import string
import struct
from dataclasses import field
from datetime import UTC, datetime
from typing import Any

import msgspec

from tests.helpers.payloads import Job, Node
from workers import BackgroundJob, Secret
from workers._enqueueing import parameters
from workers.codec import Codec
from workers.config import check_name
from workers.dsn import read_dsn
from workers.errors import ConfigurationError, InvalidJobError
from workers.hiding import Hiding, without_passwords
from workers.job import ClaimedJob, JobState
from workers.lifecycle import (
    MAX_DELAY,
    Bury,
    Completed,
    Crashed,
    Discarded,
    Failed,
    Outcome,
    Retry,
    Snoozed,
    Transition,
    Wait,
    decide,
)
from workers.registry import Registry
from workers.runtime.attempt import Attempt
from workers.runtime.executor import Executor
from workers.runtime.failure import MAX_ERROR, storable
from workers.runtime.verdict import TooManyCrashes, Undecodable, outcome_of
from workers.storage.base import Guard, Settlement, Wake
from workers.storage.postgres.listener import _parse
from workers.storage.postgres.reading import _COLUMNS, _record
from workers.storage.postgres.settling import columns, grouped

__all__ = ["SEEDS", "TARGETS"]

_codec = Codec(Job, "thing")
_GOOD = _codec.encode(
    Job(text="é", number=7, anything=[{"a": 1.5}], node=Node(1.0, Node()), when=datetime.now(UTC))
).encode()
_PASSWORD = "hunter2"
_FORMS = (
    f"postgresql://shop:{_PASSWORD}@db:5432/shop?sslmode=require",
    f"host=db password={_PASSWORD} dbname=shop",
    f"host=db password='{_PASSWORD} {_PASSWORD}'",
    f"{{'host': 'db', 'password': '{_PASSWORD}'}}",
)


def decode(data: bytes) -> None:
    """Bytes are a job, or no job; what is one comes back as it is, or is refused. So are those of a job with a change."""
    # the decoder is no Python, so that no coverage leads to what it takes
    at, length = int.from_bytes(data[:2]) % len(_GOOD), int.from_bytes(data[2:3])
    for raw in (data, _GOOD[:at] + data[3:] + _GOOD[at + length :]):
        try:
            text = _codec.encode(_codec.decode(raw))
        except InvalidJobError:
            continue
        assert _codec.encode(_codec.decode(text)) == text


def redact(data: bytes) -> None:
    """A password is found in a connection string, whatever stands around it."""
    text = data.decode("utf-8", "surrogateescape")
    if _PASSWORD in text:
        return
    for form in _FORMS:
        assert _PASSWORD not in without_passwords(f"{text} {form} {text}")
    try:
        read_dsn(f"postgresql://shop:{_PASSWORD}@{text}")
    except ConfigurationError as error:
        said = str(error)
        assert _PASSWORD not in said


def hide(data: bytes) -> None:
    """Any row can be shown without its secrets, and any text be stored without them."""
    row, _, text = data.decode("utf-8", "surrogateescape").partition("\0")
    hidden = Hiding(row, frozenset({"text"}))
    shown = msgspec.json.decode(hidden.data, type=dict[str, msgspec.Raw])
    assert bytes(shown.get("text", b'"***"')) == b'"***"'
    stored = storable(text, hidden)
    assert len(stored) <= 6 * MAX_ERROR
    assert "\0" not in stored
    stored.encode()


# Names ----------------------------------------------------------------------------------------

_LETTERS = frozenset(string.ascii_letters + string.digits + "_.:-")


def names(data: bytes) -> None:
    """A name is refused wherever it is given, in words that can be read, or it names a job type and a queue everywhere."""
    text = data.decode("utf-8", "surrogateescape")
    for name in (text, f"mail{text}", (text * 100)[:100]):
        good = 0 < len(name) <= 100 and _LETTERS.issuperset(name)
        try:
            found = check_name("the queue", name)
        except ConfigurationError as error:
            said = str(error)
            assert not good
            assert said.isprintable()
        else:
            assert good
            assert found == name
        assert _parse(f"7 -3 {name}") == Wake(name, -3, 7)
        _parse(name)
    good = 0 < len(text) <= 100 and _LETTERS.issuperset(text)
    _declare("Mail", good, job_name=text)
    _declare("Mail", good, queue=text)
    with contextlib.suppress(ValueError):  # Python's: no class can be called that
        _declare(text, None)


def _declare(class_name: str, good: bool | None, **settings: str) -> None:
    """A job class of that name, with those settings. `good`: whether it has to be taken."""
    body = {"__module__": __name__, "run": lambda self, ctx: None}
    try:
        declared: Any = type(class_name, (BackgroundJob,), body | settings)
    except ConfigurationError as error:
        said = str(error)
        assert not good
        assert said.isprintable() or not class_name.isprintable()
        return
    assert good is not False
    assert _LETTERS.issuperset(declared.job_name)
    registry = Registry()
    known = registry.register(declared)
    assert registry.get(declared.job_name) is known
    assert (known.name, known.queue) == (declared.job_name, declared.queue)
    given = {"job_type": known.name, "queue": known.queue} | settings
    written = parameters(declared, None, settings.get("queue"), None, None)
    assert (written["job_type"], written["queue"]) == (known.name, given["queue"])


# Rows -----------------------------------------------------------------------------------------


class Typed(BackgroundJob[None]):
    number: int = 0
    text: Secret[str] = ""
    ratio: float | None = None
    more: dict[str, list[int]] = field(default_factory=dict)

    def run(self, ctx: None) -> None:
        pass


class Loose(BackgroundJob[None]):
    number: Any = None
    text: Any = None

    def run(self, ctx: None) -> None:
        pass


_registry = Registry()
_TYPES = [_registry.register(job_class) for job_class in (Typed, Loose)]
_ROW = b'{"more": {"k3y": [1, 2]}, "text": "k3y k3y", "ratio": 1.5, "number": 7}'
#: id, priority, retries, crashes, token, deduplicated; where the payload is changed; four times. As wide as the columns are.
_NUMBERS = struct.Struct(">qhihq?BB4d")


def rows(data: bytes) -> None:
    """Whatever its columns hold, a row is shown, and is a job or a dead letter; and what becomes of it can be written."""
    numbers, rest = data[: _NUMBERS.size], data[_NUMBERS.size :]
    job_id, priority, retries, crashes, token, deduplicated, at, length, *times = _NUMBERS.unpack(
        numbers.ljust(_NUMBERS.size, b"\0")
    )
    name, queue, text, *_ = [*rest.decode("utf-8", "replace").split("\0"), "", "", ""]
    at %= len(_ROW)
    changed = (_ROW[:at] + text.encode() + _ROW[at + length % 16 :]).decode()
    for payload in (text, changed):
        job = ClaimedJob(
            job_id, name, queue, priority, payload, retries, crashes, deduplicated, token
        )
        assert "k3y" in f"{name} {queue}" or "k3y" not in repr(job)
        known = _registry.get(name)
        for job_type in _TYPES if known is None else [known]:
            nobody: Any = None
            _settle(Attempt(job, job_type, nobody, session=1, started=0.0, cancellable=False))
        _show(job, times)


def _settle(attempt: Attempt) -> None:
    """Decode it, and write how it ended, and how else it might have."""
    outcome: object = Completed()
    try:
        assert isinstance(Executor._prepare(attempt), attempt.type.job_class)
    except TooManyCrashes as error:
        outcome = outcome_of(error, attempt, closing=False)
        assert outcome == Crashed()
    except Undecodable as error:
        outcome = outcome_of(error, attempt, closing=False)
        assert isinstance(outcome, Discarded)
        assert outcome.reason.isprintable()
    ends: list[Any] = [outcome, Failed("no"), Snoozed(math.inf), Snoozed(math.nan)]
    for end in ends:
        _write(attempt.job, end, decide(attempt.job, end, attempt.type.policy))


def _write(job: ClaimedJob, outcome: Outcome, transition: Transition) -> None:
    if isinstance(transition, Retry | Wait):
        assert 0 <= transition.delay <= MAX_DELAY
    if isinstance(transition, Bury):
        assert 0 < len(transition.reason) <= MAX_ERROR
    assert not isinstance(outcome, Discarded | Crashed) or isinstance(transition, Bury)
    settlement = Settlement(Guard(job.id, job.token), job.deduplicated, transition)
    for kind, group in grouped([settlement]).items():
        for value in columns(kind, group).values():
            assert "\0" not in value
            value.encode()


def _show(job: ClaimedJob, times: list[float]) -> None:
    """As its owner sees it. A time is no NaN, but may be infinite."""
    moments = [0.0 if math.isnan(time) else time for time in times]
    values = dict.fromkeys(_COLUMNS) | msgspec.structs.asdict(job) | {"state": "dead"}
    values |= zip(("created_at", "last_retry", "run_at", "finished_at"), moments, strict=True)
    record = _record(tuple(values[name] for name in _COLUMNS))
    assert record.state is JobState.DEAD
    assert repr(record)
    for moment in (record.created_at, record.last_retry, record.run_at, record.finished_at):
        assert moment is not None
        assert moment.tzinfo is UTC


TARGETS = {target.__name__: target for target in (decode, redact, hide, names, rows)}
#: What each begins with.
SEEDS: dict[str, tuple[bytes, ...]] = {
    "decode": (b"", b'\0\0\0{"text": "hunter3", "number": 1}'),
    "redact": (b"postgresql://a:b@c", b"password='"),
    "hide": (b'{"text": "hunter3", "number": 1}\0hunter3', b'{"text": ["k3y", {"a": 1}]}\0a k3y'),
    "names": (
        b"send_email",
        b"SendEmailJob",
        b"9" * 100,
        b"suspects 7 0 default",
        "é\x1b".encode(),
    ),
    "rows": (
        bytes(_NUMBERS.size) + b'typed\0default\0{"number": 1}',
        bytes(_NUMBERS.size) + b'loose\0default\0"k3y"',
        b"\x7f" * _NUMBERS.size + b"\0\0[1e400]",
    ),
}
