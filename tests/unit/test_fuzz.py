"""Anything at all, from whoever writes rows or raises exceptions: `make fuzz` does the same for longer."""

from __future__ import annotations

import math
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import quote

import msgspec
import psycopg
from hypothesis import given
from hypothesis import strategies as st
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from tests.helpers.payloads import Colour, Flags, Inner, Job, Model, Mood, Node, Point, Size
from workers.codec import Codec
from workers.dsn import read_dsn
from workers.errors import ConfigurationError, InvalidJobError
from workers.hiding import Hiding, without_passwords
from workers.runtime.failure import MAX_ERROR, describe, told

codec, stable = Codec(Job, "thing"), Codec(Job, "thing", stable=True)

#: Lone surrogates, NUL and all.
TEXT = st.text(st.characters(codec=None))
FLOAT = st.floats()
INNER = st.builds(Inner, value=FLOAT)
MODEL = st.builds(Model, count=st.integers(), when=st.none() | st.datetimes(), other=TEXT)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | FLOAT | TEXT | st.binary() | st.datetimes(),
    lambda inner: st.lists(inner) | st.dictionaries(TEXT | st.integers(), inner) | st.tuples(inner),
    max_leaves=20,
)
NODES = st.recursive(
    st.none(), lambda inner: st.builds(Node, value=FLOAT, next=inner), max_leaves=150
)
JOBS = st.builds(
    Job,
    text=TEXT | st.just(Mood.HAPPY),
    number=st.integers(),
    ratio=FLOAT | st.integers(),
    anything=ANYTHING,
    inner=st.none() | INNER,
    model=st.none() | MODEL,
    models=st.lists(MODEL, max_size=2),
    node=NODES,
    sequence=st.lists(st.integers()) | st.tuples(st.integers()),
    numbers=st.sets(st.integers()),
    blob=st.binary(),
    when=st.none() | st.datetimes(timezones=st.none() | st.timezones()),
    day=st.none() | st.dates(),
    span=st.timedeltas(),
    price=st.decimals(),
    key=st.none() | st.uuids(),
    colour=st.sampled_from(Colour),
    size=st.sampled_from(Size),
    point=st.none() | st.builds(Point, x=st.integers(), y=st.integers()),
    flags=st.fixed_dictionaries({}, optional={"shiny": st.booleans()}),
    counts=st.dictionaries(TEXT, st.integers()),
    by_number=st.dictionaries(st.integers(), TEXT),
    by_ratio=st.dictionaries(FLOAT, TEXT),
    small=st.integers(),
    either=st.sampled_from(["a", "b", "c"]),
)


def same(given: Any, stored: Any) -> bool:
    """Equal, but for what == does not see: sequences are lists now, NaN is a Decimal's, a fold is a time's."""
    match given:
        case Decimal() if given.is_nan():
            return isinstance(stored, Decimal) and stored.is_nan()
        case datetime():
            bare = given.replace(tzinfo=None) == stored.replace(tzinfo=None)
            return bare and bool(given.utcoffset() == stored.utcoffset())
        case float():  # jsonb writes 1e16 as an integer, which an Any field has then
            return isinstance(stored, float | int) and given == float(stored)
        case list() | tuple():
            return len(given) == len(stored) and all(map(same, given, stored))
        case dict():
            return given.keys() == stored.keys() and all(same(given[k], stored[k]) for k in given)
        case _:
            return bool(given == stored)


@given(JOBS)
def test_a_payload_comes_back_or_is_refused(job: Job) -> None:
    try:
        text = codec.encode(job)
    except InvalidJobError:
        assert codec.encode_block([job, job]) is None
        return
    copy = codec.decode(text)
    for item in job.__dataclass_fields__:
        assert same(getattr(job, item), getattr(copy, item)), item
    assert codec.encode_block([job, job]) in (None, [text, text])
    assert "\0" not in text + str(msgspec.json.decode(text))
    text.encode()
    try:
        ordered = stable.encode(job)
    except InvalidJobError:  # keys of some kinds have no order
        return
    assert stable.encode(copy) == ordered


@st.composite
def nearly_json(draw: st.DrawFn) -> bytes:
    """A good payload of which a piece is missing, doubled, or something else."""
    parts = {
        "number": draw(st.integers()),
        "text": draw(st.text()),
        "anything": draw(ANYTHING.filter(_is_plain)),
        "node": draw(st.sampled_from([None, {"value": 1, "next": {}}])),
        "model": {"count": draw(st.integers()), "when": "2020-01-01T00:00:00Z"},
    }
    raw = bytearray(msgspec.json.encode(parts))
    for _ in range(draw(st.integers(0, 3))):
        start = draw(st.integers(0, len(raw)))
        end = draw(st.integers(start, min(len(raw), start + 8)))
        raw[start:end] = draw(
            st.binary(max_size=6)
            | st.sampled_from([b"[" * 3000, b"1e999999", b"\\ud800", b"\\u0000", b"9" * 5000, b'"'])
        )
    return bytes(raw)


def _is_plain(value: object) -> bool:
    try:
        msgspec.json.encode(value)
    except Exception:
        return False
    return True


@given(st.binary() | nearly_json() | TEXT)
def test_what_is_decoded_is_a_job_or_refused(raw: bytes | str) -> None:
    try:
        job = codec.decode(raw)
    except InvalidJobError:
        return
    assert isinstance(job, Job)


@given(st.binary() | nearly_json(), st.text())
def test_any_row_can_be_shown_without_its_secrets(raw: bytes, text: str) -> None:
    hide = Hiding(raw.decode("utf-8", "replace"), frozenset({"text", "anything"}))
    shown = msgspec.json.decode(hide.data, type=dict[str, msgspec.Raw])
    assert all(bytes(shown[name]) == b'"***"' for name in ("text", "anything") if name in shown)
    hide(text)


# Connection strings -----------------------------------------------------------------------------

#: No word of a connection string has it in it, nor *** or the text around.
PASSWORDS = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), min_size=1).map(
    lambda text: f"hunter{text}2"
)


@given(PASSWORDS, st.text("ab z\n"), st.text("ab @z"))
def test_a_password_is_found_in_any_connection_string(word: str, before: str, after: str) -> None:
    url = f"postgresql://me:{quote(word, safe='')}@db:5432/shop?sslmode=require"
    for dsn in (read_dsn(url), make_conninfo(host="db", user="me", password=word), url):
        assert conninfo_to_dict(dsn)["password"] == word
        for text in (dsn, repr(dsn), f"{before}{dsn} {after}"):
            assert "hunter" not in without_passwords(text)


@given(TEXT)
def test_a_connection_string_is_read_or_refused(text: str) -> None:
    for dsn in (text, f"postgresql://{text}", f"postgresql://me:hunter2@{text}", f"host={text}"):
        without_passwords(dsn)
        try:
            conninfo_to_dict(read_dsn(dsn))
        except ConfigurationError as error:
            said = str(error)
            assert "hunter2" not in said


# Errors -----------------------------------------------------------------------------------------


@dataclass
class Parts:
    """What an exception is made of."""

    texts: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


KINDS: list[Callable[..., BaseException]] = [
    ValueError,
    KeyError,
    OSError,
    SystemExit,
    psycopg.Error,
    lambda *args: ExceptionGroup(str(args), [ValueError(*args), TypeError()]),
    lambda *args: SyntaxError("bad", ("file", 1, 1, str(args))),
    lambda *args: UnicodeDecodeError("utf-8", repr(args).encode("utf-8", "replace"), 0, 1, "bad"),
]


@st.composite
def errors(draw: st.DrawFn) -> BaseException:
    """One that was caused by others."""
    error: BaseException | None = None
    for _ in range(draw(st.integers(1, 4))):
        following = draw(st.sampled_from(KINDS))(*draw(st.lists(TEXT, max_size=3)))
        for note in draw(st.lists(TEXT, max_size=2)):
            following.add_note(note)
        if draw(st.booleans()):
            following.__cause__ = error
        else:
            following.__context__ = error
        error = following
    assert error is not None
    return error


@given(errors(), st.text(min_size=4))
def test_any_error_can_be_stored(error: BaseException, secret: str) -> None:
    hide = Hiding(msgspec.json.encode({"token": secret}).decode(), frozenset({"token"}))
    for text in (describe(error), describe(error, hide), *map(describe, told(error, hide)[1:])):
        assert len(text) <= 6 * MAX_ERROR
        assert "\0" not in text
        text.encode()


def test_the_strategies_reach_what_is_accepted() -> None:
    """A test whose payloads are all refused would pass for ever."""
    job = Job(
        text="é",
        anything=[{"a": 1.5}],
        sequence=[1],
        node=Node(1.0, Node()),
        flags=Flags(shiny=True),
        day=date(2024, 1, 1),
        span=timedelta(1),
        key=uuid.uuid4(),
    )
    test_a_payload_comes_back_or_is_refused.hypothesis.inner_test(job)  # type: ignore[attr-defined]
    assert codec.decode(codec.encode(job)) == job
    assert same(Decimal("NaN"), Decimal("NaN"))
    assert not same([math.inf], [1.0])
