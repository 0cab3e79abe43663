"""What a payload may be, and what is said when it may not. Guarantee 8, and rule 15 on decoding."""

from __future__ import annotations

import math
import re
import uuid
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Annotated, Any
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers.payloads import (
    Colour,
    Holder,
    Inner,
    Job,
    Model,
    Mood,
    Node,
    Odd,
    Point,
    WithRaw,
    WithUnion,
    WithUnknown,
)
from workers.codec import MAX_BYTES, MAX_DEPTH, Codec
from workers.errors import InvalidJobError, RegistrationError

codec = Codec(Job, "thing")


@dataclass
class Lean:
    text: str = ""
    deep: list[Any] = field(default_factory=list)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value


FOLD = datetime(2024, 10, 27, 2, 30, tzinfo=ZoneInfo("Europe/Berlin"), fold=1)
GOOD: list[dict[str, Any]] = [
    {},
    {"text": "null \\u0000 \\ud800 \\ NaN [[[ {{{ é 🦊 \u2028 \x7f \x01"},
    {"text": Mood.HAPPY},
    {"number": 2**200, "ratio": 3},
    {"number": -(2**63) - 1},
    {"anything": {"a": [1, 1.5, "x", None, True, {}]}},
    {"anything": (1, 2)},
    {"anything": nested(MAX_DEPTH - 1)},
    {"anything": "[" * 200},
    {"anything": ["1e308 \\" * 50_000, 1e-300]},
    {"anything": [[]] * 200},
    {"inner": Inner(1.5), "node": Node(1.0, Node())},
    {"model": Model(count=1, when=datetime.now(UTC), other="x")},
    {"models": [Model(count=1), Model(count=2)]},
    {"sequence": (1, 2), "numbers": {3, 1, 2}, "blob": b"\0\xff"},
    {"when": FOLD},
    {"when": datetime(2024, 1, 1), "day": date(2024, 1, 1), "span": timedelta(hours=1.5)},
    {"price": Decimal("1.10"), "key": uuid.uuid4(), "point": Point(1, 2)},
    {"price": Decimal("sNaN")},
    {"flags": {"shiny": True}, "counts": {"a": 1}, "by_number": {1: "a"}, "by_ratio": {0.5: "a"}},
]


#: What is not equal to its own copy: NaN, a tuple that comes back as a list, a time inside a fold.
ODD = {"price", "anything", "sequence", "when"}


@pytest.mark.parametrize("payload", GOOD, ids=lambda payload: " ".join(payload))
def test_a_good_payload_comes_back(payload: dict[str, Any]) -> None:
    text = codec.encode(Job(**payload))
    assert isinstance(text, str)
    copy = codec.decode(text)
    assert codec.encode(copy) == codec.encode(codec.decode(codec.encode(copy)))
    assert all(getattr(copy, name) == value for name, value in payload.items() if name not in ODD)


def test_a_block_of_good_payloads_is_what_each_is_alone() -> None:
    """Or it is left to be asked one by one."""
    plain = [
        Job(text=f"job {number}", number=number, flags={"shiny": True}) for number in range(300)
    ]
    assert codec.encode_block(plain) is None, "their defaults have null"
    lean = Codec(Lean, "lean")
    jobs = [Lean(text=f"tab\t line\n é {number}", deep=[[number]] * 60) for number in range(300)]
    assert lean.encode_block(jobs) == [lean.encode(job) for job in jobs]
    for payload in GOOD:
        assert codec.encode_block([Job(**payload)]) in (None, [codec.encode(Job(**payload))])


CIRCLE: list[Any] = []
CIRCLE.append(CIRCLE)

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "wrong type": ({"text": 1}, "field `text`: expected `str`, got `int`"),
    "wrong type inside": ({"sequence": [1, "x"]}, r"field `sequence\[1\]`: expected `int`"),
    "bool is no int": ({"number": True}, "field `number`"),
    "none": ({"text": None}, "field `text`"),
    "bytes as text": ({"text": b"x"}, "field `text`: `bytes` would come back as `str`"),
    "seconds in the offset": (
        {"when": datetime(1912, 1, 1, tzinfo=ZoneInfo("Africa/Abidjan"))},
        "field `when`: a time whose offset from UTC has seconds",
    ),
    "datetime as text": ({"text": datetime.now(UTC)}, "field `text`: `datetime` would"),
    "uuid as text": ({"text": uuid.uuid4()}, "field `text`: `UUID` would"),
    "enum as text": ({"text": Colour.RED}, "field `text`: `Colour` would"),
    "text as bytes": ({"blob": "abcd"}, "field `blob`: `str` would come back as `bytes`"),
    "text as enum": ({"colour": "red"}, "field `colour`: `str` would"),
    "dict as dataclass": ({"inner": {"value": 1.0}}, "field `inner`: `dict` would"),
    "constraint": ({"small": 11}, "field `small`: expected `int` <= 10"),
    "literal": ({"either": "sekret"}, "field `either`: invalid enum value"),
    "datetime in Any": ({"anything": [date.today()]}, r"field `anything\[0\]`: `date` would"),
    "model in Any": ({"anything": Model(count=1)}, "field `anything`: `Model` would"),
    "int keys in Any": ({"anything": {1: 2}}, "field `anything`: a key of type `int`"),
    "object": ({"anything": [{"k": object()}]}, r"field `anything\[0\]\[...\]`: `object` can't"),
    "keys": ({"anything": {(1, 2): 3}}, "field `anything"),
    "nan": ({"ratio": math.nan}, "field `ratio`: NaN or Infinity"),
    "infinity": ({"ratio": -math.inf}, "field `ratio`: NaN or Infinity"),
    "nan in Any": ({"anything": {"a": [1.0, math.nan]}}, r"field `anything\[...\]\[1\]`: NaN"),
    "nan in a dataclass": ({"inner": Inner(0.0, math.nan)}, "field `inner.uncompared`: NaN"),
    "nan in a struct": ({"node": Node(next=Node(math.inf))}, "field `node.next.value`: NaN"),
    "nan as a key": ({"by_ratio": {math.nan: "a"}}, "field `by_ratio"),
    "nul": ({"text": "a\0b"}, "field `text`: text with a NUL"),
    "nul in a key": ({"anything": [{"a\0": 1}]}, r"field `anything\[0\]\[...\]`: text with a NUL"),
    "nul in a model": ({"model": Model(count=1, other="\0")}, r"field `model.*: text with a NUL"),
    "surrogate": ({"text": "a\ud800"}, "field `text`: text with a lone surrogate"),
    "surrogate in a key": ({"anything": {"\udfff": 1}}, "field `anything.*surrogate"),
    "surrogate in a model": ({"model": Model.model_construct(count=1, renamed="\ud800")}, "model"),
    "float overflow": ({"ratio": 10**400}, "field `ratio`: number out of range"),
    "float precision": ({"ratio": 2**53 + 1}, "field `ratio`: `int` would come back as `float`"),
    "digits": ({"number": 10**5000}, "field `number`: an integer with too many digits"),
    "deep": ({"anything": nested(MAX_DEPTH)}, "field `anything`: more than 100 levels"),
    "very deep": ({"anything": nested(6000)}, "nested too deeply"),
    "circle": ({"anything": CIRCLE}, "nested too deeply"),
    "size": ({"text": "x" * MAX_BYTES}, r"1,04\d,\d\d\d bytes of JSON and at most 1,048,576"),
    "written out": ({"anything": [1e308] * 60_000}, "take more than 16,777,216 bytes: scale them"),
    "secret of a model": (
        {"model": Model(count=1, token=pydantic.SecretStr("sekret"))},
        "field `model.token`: `SecretStr` would come back with another value",
    ),
    "raw": ({"anything": msgspec.Raw(b"[1]")}, "field `anything`: `Raw` would"),
    "raw that is no JSON": ({"anything": msgspec.Raw(b"{nonsense")}, "not JSON"),
    "raw with a surrogate": ({"anything": msgspec.Raw(rb'"\ud800"')}, "not JSON"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_payload_is_refused_with_its_place(case: str) -> None:
    payload, message = BAD[case]
    with pytest.raises(InvalidJobError, match=f"^job 'thing'.*{message}") as caught:
        codec.encode(Job(**payload))
    said = str(caught.value)
    assert len(said) < 300
    assert "sekret" not in said
    # an error below may quote the payload: it must not be logged along
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@pytest.mark.parametrize("case", BAD)
def test_a_bad_payload_lets_its_block_be_looked_at_one_by_one(case: str) -> None:
    assert codec.encode_block([Job(), Job(**BAD[case][0]), Job()]) is None


@pytest.mark.parametrize(
    "bad",
    [
        {"text": 1},
        {"text": "\0"},
        {"text": "\ud800"},
        {"text": "x" * MAX_BYTES},
        {"deep": nested(MAX_DEPTH)},
        {"deep": [math.nan]},
    ],
)
def test_a_lean_one_too(bad: dict[str, Any]) -> None:
    """Nothing else in this class asks for a closer look."""
    lean = Codec(Lean, "lean")
    assert lean.encode_block([Lean(), Lean()]) is not None
    assert lean.encode_block([Lean(), Lean(**bad)]) is None
    with pytest.raises(InvalidJobError):
        lean.encode(Lean(**bad))


UNDECODABLE: dict[str, str | bytes] = {
    "empty": "",
    "not JSON": "nul",
    "cut off": '{"text": "a',
    "more": "{} {}",
    "an array": "[]",
    "a number": "1",
    "null": "null",
    "wrong type": '{"text": 1}',
    "wrong model": '{"model": {"count": "sekret"}}',
    "wrong enum": '{"colour": "sekret"}',
    "huge float": '{"anything": 1e5000}',
    "huge integer": '{"number": 1' + "0" * 5000 + "}",
    "deep": '{"anything": ' + "[" * 6000 + "]" * 6000 + "}",
    "surrogate": r'{"text": "\ud800"}',
    "lone surrogate": '{"text": "\ud800"}',
    "not UTF-8": b'{"text": "\xff"}',
}


@pytest.mark.parametrize("case", UNDECODABLE)
def test_bad_text_raises_one_error(case: str) -> None:
    with pytest.raises(InvalidJobError, match=r"^job 'thing'") as caught:
        codec.decode(UNDECODABLE[case])
    assert "sekret" not in str(caught.value)


@given(st.text() | st.binary())
def test_no_text_raises_anything_else(text: str | bytes) -> None:
    try:
        codec.decode(text)
    except InvalidJobError:
        pass


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(JSON)
def test_what_is_accepted_comes_back_as_it_is(value: Any) -> None:
    try:
        text = codec.encode(Job(anything=value))
    except InvalidJobError:
        return
    assert codec.decode(text).anything == value
    assert codec.encode_block([Job(anything=value)] * 2) in (None, [text, text])
    assert r"\u0000" not in text.replace(r"\\", "")


def test_fields_that_are_not_known_or_missing_are_tolerated() -> None:
    """An older or newer version of the class wrote them."""
    assert codec.decode('{"added_later": 1}') == Job()


@pytest.mark.parametrize("error", [ValueError, KeyError, RuntimeError, MemoryError])
def test_what_post_init_raises_is_a_bad_job(error: type[Exception]) -> None:
    @dataclass
    class Checked:
        text: str

        def __post_init__(self) -> None:
            if self.text != "fine":
                raise error(f"refused {self.text}")

    checked = Codec(Checked, "checked")
    assert checked.decode('{"text": "fine"}') == Checked("fine")
    with pytest.raises(InvalidJobError, match=f"own checks raised {error.__name__}") as caught:
        checked.decode('{"text": "sekret"}')
    assert "sekret" not in str(caught.value)


def test_a_comparison_that_raises_decides_nothing() -> None:
    assert Codec(Holder, "holder").encode(Holder(Odd("a"))) == '{"odd":{"text":"a"}}'


@pytest.mark.parametrize("size", [0, 1])
def test_jobs_with_no_field_or_one(size: int) -> None:
    @dataclass
    class Empty:
        pass

    @dataclass
    class One:
        only: float

    if size == 0:
        assert Codec(Empty, "empty").encode(Empty()) == "{}"
    else:
        assert Codec(One, "one").encode(One(1.5)) == '{"only":1.5}'
        with pytest.raises(InvalidJobError, match="`only`: NaN"):
            Codec(One, "one").encode(One(math.nan))


def test_exactly_the_limits_are_allowed() -> None:
    @dataclass
    class Text:
        t: str

    text = Codec(Text, "text")
    room = MAX_BYTES - len('{"t":""}')
    assert len(text.encode(Text("x" * room))) == MAX_BYTES
    with pytest.raises(InvalidJobError, match="1,048,577 bytes"):
        text.encode(Text("x" * (room + 1)))
    with pytest.raises(InvalidJobError, match="bytes"):  # bytes, not characters
        text.encode(Text("é" * (room // 2 + 1)))


def test_equal_deduplicated_jobs_have_equal_json() -> None:
    stable = Codec(Job, "thing", stable=True)
    one = stable.encode(Job(numbers={8, 16, 1}, anything={"a": 1, "b": 2}, ratio=3))
    assert one == stable.encode(Job(numbers={1, 16, 8}, anything={"b": 2, "a": 1}, ratio=3.0))
    with pytest.raises(InvalidJobError, match="`anything`: a set of different kinds"):
        stable.encode(Job(anything={1, "a"}))


@dataclass(frozen=True)
class Base:
    name: str


@dataclass(frozen=True)
class Derived(Base):
    more: str


@dataclass(frozen=True, eq=False)
class Unequal:
    name: str


@dataclass
class WithSets:
    texts: set[str] = field(default_factory=set)
    ratios: frozenset[float] = frozenset()
    bases: set[Base] = field(default_factory=set)
    unequal: set[Unequal] = field(default_factory=set)
    times: set[datetime] = field(default_factory=set)
    listed: list[str] = field(default_factory=list)


CHANGED: dict[str, dict[str, Any]] = {
    "uuid as text": {"texts": {uuid.uuid4()}},
    "one of two": {"texts": {b"abc", "abc"}},
    "list": {"texts": [uuid.uuid4()]},
    "precision": {"ratios": {1.5, 2**53 + 1}},
    "derived": {"bases": {Base("a"), Derived("b", "lost")}},
    "seconds in the offset": {"times": {datetime(1912, 1, 1, tzinfo=ZoneInfo("Africa/Abidjan"))}},
    "into a list": {"listed": {uuid.uuid4()}},
    "many": {"unequal": {Unequal(str(number)) for number in range(1001)}},
}


@pytest.mark.parametrize("payload", CHANGED.values(), ids=CHANGED)
def test_an_element_of_a_set_that_would_come_back_as_another_is_refused(
    payload: dict[str, Any],
) -> None:
    with pytest.raises(
        InvalidJobError, match=rf"field `{next(iter(payload))}`.*(in a set|a set with)"
    ):
        Codec(WithSets, "sets").encode(WithSets(**payload))


def test_sets_that_come_back() -> None:
    """In whatever order, also where elements are only the same, not equal."""
    codec = Codec(WithSets, "sets")
    for _ in range(20):
        jobs = WithSets({"a", "b", "c"}, frozenset({1, 2.5}), {Base("a"), Base("b")})
        assert codec.decode(codec.encode(jobs)) == jobs
        given: Any = {"texts": ["b", "a", "b"], "listed": {"x", "y"}}
        copy = codec.decode(codec.encode(WithSets(**given)))
        assert (copy.texts, sorted(copy.listed)) == ({"a", "b"}, ["x", "y"])
        unequal = codec.decode(codec.encode(WithSets(unequal={Unequal("a"), Unequal("b")})))
        assert {each.name for each in unequal.unequal} == {"a", "b"}


class Tagged(pydantic.BaseModel):
    tags: list[frozenset[str]] = []


@dataclass
class WithTagged:
    filter: Tagged


def test_a_deduplicated_job_may_hold_no_set_in_a_model() -> None:
    """Pydantic writes it in the order of this process."""
    Codec(WithTagged, "tagged")
    with pytest.raises(RegistrationError, match=r"WithTagged is deduplicated.*Tagged holds a set"):
        Codec(WithTagged, "tagged", stable=True)


@pytest.mark.parametrize("job_class", [WithUnknown, WithUnion, WithRaw])
def test_a_field_that_can_not_be_stored_is_refused_when_the_class_is_used(job_class: type) -> None:
    with pytest.raises(RegistrationError, match=f"{job_class.__name__}.*stored as JSON"):
        Codec(job_class, "unknown")


@dataclass
class Plain:
    text: str
    number: int
    ratio: float
    flag: bool


@dataclass
class Alone:
    text: str


@given(st.builds(Plain, st.text(), st.integers(), st.floats(), st.booleans()))
@example(Plain("", -(10**4299), 0.0, True))
@example(Plain("", 10**5000, 0.0, True))
@example(Plain("x" * 200, 2**64, 1e308, False))
def test_what_is_not_compared_is_what_comparing_would_have_let_through(job: Plain) -> None:
    """A field's own kind of text, number or boolean comes back as it is, if it can be written at all."""
    quick, slow = Codec(Plain, "plain"), Codec(Plain, "plain")
    slow._exact = None
    try:
        text = slow.encode(job)
    except InvalidJobError as error:
        with pytest.raises(InvalidJobError, match=re.escape(str(error))):
            quick.encode(job)
    else:
        assert quick.encode(job) == text
        copy = quick.decode(text)
        assert repr(copy) == repr(job)


@pytest.mark.parametrize(
    "job",
    [
        Plain(text=Colour.RED, number=1, ratio=1.0, flag=True),  # type: ignore[arg-type]
        Plain(text="", number=True, ratio=1.0, flag=True),
        Plain(text="", number=1, ratio=2**53 + 1, flag=True),
        Plain(text="", number=1, ratio=math.nan, flag=True),
        Plain(text="a\0", number=1, ratio=1.0, flag=True),
        Plain(text=b"bytes", number=1, ratio=1.0, flag=True),  # type: ignore[arg-type]
        Alone(text=Colour.RED),  # type: ignore[arg-type]
        Alone(text=1),  # type: ignore[arg-type]
    ],
    ids=repr,
)
def test_values_of_other_types_are_compared(job: Any) -> None:
    with pytest.raises(InvalidJobError):
        Codec(type(job), "plain").encode(job)


def test_which_classes_need_no_comparison() -> None:
    """None that does something when it is decoded, or that asks more of a value than its type."""

    @dataclass
    class Checks:
        text: str

        def __post_init__(self) -> None:
            self.text = self.text.strip()

    @dataclass
    class Bounded:
        text: Annotated[str, msgspec.Meta(max_length=3)]

    @dataclass
    class Absent:
        text: str | None = None

    assert Codec(Plain, "plain")._exact == (str, int, float, bool)
    assert Codec(Alone, "alone")._exact == (str, str)
    for job_class in (Checks, Bounded, Absent, Job):
        assert Codec(job_class, "other")._exact is None
