"""What is a secret, in which guises it is found, and how it is taken out of texts."""

from __future__ import annotations

import base64
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, make_dataclass
from datetime import UTC, date, datetime
from typing import Annotated, Any, NamedTuple, NewType, TypedDict
from urllib.parse import quote

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers import BackgroundJob, ClaimedJob, Secret
from workers.declaration import payload_fields
from workers.errors import RegistrationError
from workers.hiding import HIDDEN, Hiding, secret_fields, without_passwords
from workers.job_type import describe

CANARY = "canary-4711"


@dataclass
class Card:
    number: Secret[str] = ""


class Account(msgspec.Struct):
    cards: list[Card] = []


class Login(pydantic.BaseModel):
    key: Secret[str] = ""


class Pair(NamedTuple):
    left: Secret[int] = 0


class Typed(TypedDict):
    key: Secret[str]


class Tree(msgspec.Struct):
    """Refers to itself."""

    nodes: list[Tree] = []


class Everything(BackgroundJob[Any]):
    plain: Secret[str] = ""
    by_hand: Annotated[str, Secret] = ""
    limited: Annotated[Secret[str], msgspec.Meta(max_length=20)] = ""
    maybe: Secret[str] | None = None
    many: list[Secret[str]] = field(default_factory=list)
    named: dict[str, Secret[bytes]] = field(default_factory=dict)
    card: Card | None = None
    account: Account | None = None
    login: Login | None = None
    pair: Pair = Pair()
    typed: Typed | None = None
    open_name: str = ""
    open_tree: Tree | None = None
    open_list: list[dict[str, int]] = field(default_factory=list)

    async def run(self, ctx: Any) -> None: ...


def test_a_mark_counts_wherever_it_stands_in_a_field() -> None:
    names = {item.name for item in payload_fields(Everything) if "open" not in item.name}
    assert describe(Everything).secrets == secret_fields(Everything) == names


class Reset(BackgroundJob[Any]):
    to: str
    token: Secret[str]
    quiet: str = field(default="quiet", repr=False)

    async def run(self, ctx: Any) -> None: ...


@dataclass(slots=True)
class Slotted(BackgroundJob[Any]):
    secret: Secret[str]

    async def run(self, ctx: Any) -> None: ...


@dataclass
class Decorated(BackgroundJob[Any]):
    secret: Secret[str]

    async def run(self, ctx: Any) -> None: ...


class Derived(Decorated):
    more: int = 1


class Unresolvable(Decorated):
    more: Missing = 1  # type: ignore[name-defined]  # noqa: F821 - on purpose


class WithItsOwn(Decorated):
    def __repr__(self) -> str:
        return "its own"


@pytest.mark.parametrize(
    ("job", "shown"),
    [
        (Reset(to="a", token=CANARY), "Reset(to='a', token=***)"),
        (Slotted(secret=CANARY), "Slotted(secret=***)"),
        (Decorated(secret=CANARY), "Decorated(secret=***)"),
        (Derived(secret=CANARY), "Derived(secret=***, more=1)"),
        (Unresolvable(secret=CANARY), "Unresolvable(secret=***, more=***)"),
        (WithItsOwn(secret=CANARY), "its own"),
    ],
)
def test_a_job_is_shown_without_them(job: BackgroundJob[Any], shown: str) -> None:
    assert repr(job) == str(job) == shown


def test_a_row_is_shown_without_its_payload() -> None:
    job = ClaimedJob(1, "reset", "default", 0, CANARY, 0, 0, False, 1)
    assert repr(job).startswith("ClaimedJob(id=1, job_type='reset', queue='default', priority=0, ")
    assert CANARY not in repr(job) + str(job.__rich_repr__())


def hide(value: object) -> Hiding:
    return Hiding(msgspec.json.encode({"token": value, "to": "a"}).decode(), frozenset({"token"}))


MOMENT = datetime(1990, 5, 17, 1, 2, 3, 4000, tzinfo=UTC)

MULTI_LINE = "-----BEGIN KEY-----\nMIIEvQIBADANBgkq\nhkiG9w0BAQEFAASC\n-----END KEY-----\n"


TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0<>*"), min_size=4)


@given(TEXTS.filter(lambda text: len(text.strip()) >= 4))
def test_a_text_is_found_as_it_is_commonly_quoted(secret: str) -> None:
    hidden = hide(secret)
    for guise in (
        secret,
        repr(secret),
        f"{KeyError(secret)!r}",
        f"{ValueError(f'about {secret!r}')!r}",
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        quote(secret),
        quote(secret, safe=""),
    ):
        shown = hidden(f"<{guise}>")
        assert HIDDEN in shown
        assert secret.strip() not in shown


@pytest.mark.parametrize(
    ("value", "said", "shown"),
    [
        (CANARY, f"x{CANARY}y", "x***y"),
        ([CANARY, {"deep": [CANARY + "2"]}], f"{CANARY}2 {CANARY}", "*** ***"),
        (
            {"a@example.com": True, "ann": None},
            "a@example.com of ann, Hannah",
            "*** of ***, Hannah",
        ),
        ({"sk_live_abc123": 1}, "KeyError: 'sk_live_abc123'", "KeyError: '***'"),
        ({"code": 1234}, "1234 is wrong, 12345 is not", "*** is wrong, 12345 is not"),
        ("e", "the letter e, 'e'", "the letter ***, '***'"),
        (b"bytes of it", "b'bytes of it', bytes of it", "b'***', ***"),
        (b"\xff\x00ab", "b'\\xff\\x00ab'", "b'***'"),
        (b"pin", "b'pin', pin, pine", "b'***', ***, pine"),
        (b"12345", "b'12345'", "b'***'"),
        (b"q", "b'q', queue", "b'***', queue"),
        (b"  ", "a  b", "a  b"),
        (date(1990, 5, 17), f"{date(1990, 5, 17)} {date(1990, 5, 17)!r}", "*** ***"),
        (MOMENT, f"{MOMENT}, {MOMENT.isoformat()}", "***, ***"),
        (MOMENT, repr(MOMENT), "***, tzinfo=datetime.timezone.utc)"),
        (MOMENT.time(), f"{MOMENT.time()} {MOMENT.time()!r}", "*** ***)"),
        ("", "nothing", "nothing"),
        ("  ", "a  b", "a  b"),
        (None, "None", "None"),
        (True, "True", "True"),
        (f" {CANARY}\n", f"'{CANARY}'", "'***'"),
        (MULTI_LINE, MULTI_LINE, "***"),
        (10**400, f"{10**400}", "***"),
    ],
)
def test_what_is_found(value: object, said: str, shown: str) -> None:
    assert hide(value)(said) == shown


class Renamed(msgspec.Struct, rename="camel"):
    full_name: str = ""


class Aliased(pydantic.BaseModel):
    number: str = pydantic.Field("", alias="no")


class Keys(BackgroundJob[Any]):
    keys: dict[Secret[str], int]
    renamed: Secret[Renamed] = field(default_factory=Renamed)
    aliased: Secret[Aliased | None] = None
    others: Secret[tuple[Typed, Card] | None] = None

    async def run(self, ctx: Any) -> None: ...


def test_names_of_fields_are_no_secrets() -> None:
    """But all other keys are."""
    data = msgspec.json.encode(
        {
            "keys": {"annsmith": 1},
            "renamed": {"fullName": "Ann A"},
            "aliased": {"no": "12 34"},
            "others": [{"key": "k3y k3y"}, {"number": "5"}],
        }
    ).decode()
    hidden = Hiding(data, describe(Keys).secrets, Keys)
    text = "annsmith, full_name, fullName, no, key, number"
    assert hidden(text) == "***, full_name, fullName, no, key, number"


def test_a_text_of_lines_is_found_where_it_is_indented() -> None:
    """As in the traceback of a group."""
    group = ExceptionGroup("several", [ValueError(MULTI_LINE)])
    text = hide(MULTI_LINE)("".join(traceback.format_exception(group)))
    assert not any(line in text for line in MULTI_LINE.splitlines())
    assert "ValueError" in text


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        ('{"to": "a", "token": "x", "n": 1e5000}', '{"to":"a","token":"***","n":1e5000}'),
        ('{"to": "a"}', '{"to":"a"}'),
        ("[1, 2]", "{}"),
        ("null", "{}"),
        ("no JSON", "{}"),
    ],
)
def test_a_payload_is_shown_without_them(data: str, shown: str) -> None:
    hidden = Hiding(data, frozenset({"token"}))
    assert hidden.data == shown
    assert hidden("to a") == "to a"


def test_a_number_that_only_its_type_can_hold_is_hidden() -> None:
    assert Hiding('{"token": 1e5000}', frozenset({"token"}))("no 1e5000!") == "no ***!"
    assert Hiding('{"token": ' + "[" * 3000, frozenset({"token"}))("x") == "x"


def test_where_it_would_take_too_long_nothing_is_shown() -> None:
    for value, text in (
        ([f"secret-{number}" for number in range(20_000)], "a short text"),
        (CANARY, "x" * 60_000_000),
    ):
        started = time.monotonic()
        assert hide(value)(text) == "(not shown: too much to look for secrets in)"
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at postgresql://me:a:b@c/d@h:1/x?y=z.", "at postgresql://me:***@h:1/x?y=z."),
        ("postgresql://h:5432/x", "postgresql://h:5432/x"),
        ("postgresql://me@h:5432/x", "postgresql://me@h:5432/x"),
        ("'postgresql+psycopg://:a@h' and http://b", "'postgresql+psycopg://:***@h' and http://b"),
        ("host=h password = 'it\\'s' user=me", "host=h password = *** user=me"),
        ("postgresql:///x?password=abc&host=h", "postgresql:///x?password=***&host=h"),
        ("PGPASSWORD=abc sslpassword=d e", "PGPASSWORD=*** sslpassword=*** e"),
        ("{'password': 'a b', 'x': 1}", "{'password': ***, 'x': 1}"),
        ("password=' password='a b' x", "password=*** x"),
        ("password='a b\nc", "password=***\nc"),
        ("password=password='a b' password=c d", "password=*** password=*** d"),
        ("password authentication failed", "password authentication failed"),
    ],
)
def test_passwords_are_taken_out(text: str, shown: str) -> None:
    assert without_passwords(text) == shown


@pytest.mark.parametrize(
    "part",
    [
        "://",
        "://a:",
        "://a:b@",
        "password='",
        "password='\\'",
        'password="\\',
        "password   ",
        "password=",
        "@",
    ],
)
def test_no_text_takes_long_to_look_through(part: str) -> None:
    """Whoever makes the text of an exception long must not stop the event loop."""
    text = part * (2_000_000 // len(part))
    started = time.monotonic()
    without_passwords(text)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "annotation",
    [Secret, Secret | None, list[Secret]],  # type: ignore[type-arg]  # as is tested
)
def test_a_mark_without_a_type_is_refused(annotation: Any) -> None:
    bare = make_dataclass("Bare", [("token", annotation)])
    with pytest.raises(RegistrationError, match=r"Bare\.token: .* `token: Secret\[str\]`"):
        secret_fields(bare)


@pytest.mark.parametrize("before", ["", "u", "us", "user:"])
@pytest.mark.parametrize("after", ["", "!", "!!"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_secret_inside_of_base64_is_hidden(
    before: str, after: str, encode: Callable[[bytes], bytes]
) -> None:
    """As in the header of HTTP's basic authentication, wherever it begins there; nothing of it can be decoded then."""
    secret = "s3cret~~value?-4711"
    hide = Hiding(json.dumps({"token": secret}), frozenset({"token"}))
    coded = encode(f"{before}{secret}{after}".encode()).decode()
    shown = hide(f"401 for Basic {coded}.")
    assert HIDDEN in shown
    left = len(shown.replace(HIDDEN, "")) - len("401 for Basic .")
    assert left <= len(encode(before.encode())) + len(encode(after.encode())) + 2
    assert hide("401 for Basic dXNlcjpub2JvZHk=") == "401 for Basic dXNlcjpub2JvZHk="


@dataclass
class _Marked:
    s: dict[str, Secret[str]]


@dataclass
class _Between:
    c: _Marked
    f0: str | int | None
    f1: list[list[int]]
    f2: dict[str, int]
    f3: int | None
    f4: int | None


@dataclass
class _Around:
    f0: set[str]
    f1: list[int]
    c: _Between
    f2: tuple[int, str]


_Token = NewType("_Token", Secret[str])


class Deep(BackgroundJob[Any]):
    x: _Around
    token: _Token

    async def run(self, ctx: Any) -> None: ...


def test_no_mark_is_missed_because_another_annotation_had_its_address() -> None:
    """Annotations that are texts become types anew each time, which come and go."""
    assert describe(Deep).secrets == {"x", "token"}
