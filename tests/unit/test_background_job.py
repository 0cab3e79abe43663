"""The job class: what becomes payload, what a setting, and what is refused when the class is defined."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, ClassVar

import pytest

from workers import (
    BackgroundJob,
    ClaimedJob,
    ConfigurationError,
    Exponential,
    Fixed,
    Priority,
    RegistrationError,
)
from workers.declaration import LATER, RESERVED
from workers.job_type import describe


class Quiet(BackgroundJob[Any]):
    """A base with a run method."""

    async def run(self, ctx: Any) -> None: ...


class SendEmail(Quiet):
    queue = "emails"
    priority = Priority.HIGH
    retries_shown: ClassVar[int] = 3
    tries = 4  # nobody's setting

    to: str
    subject: str = "Welcome!"
    copies: list[str] = field(default_factory=list)


# The dataclass ----------------------------------------------------------------------------------


def test_a_job_is_a_dataclass_without_saying_so() -> None:
    job = SendEmail(to="a@example.com")
    assert job == SendEmail(to="a@example.com", copies=[])
    assert [item.name for item in dataclasses.fields(job)] == ["to", "subject", "copies"]
    assert "to='a@example.com'" in repr(job)
    with pytest.raises(TypeError, match="positional"):
        SendEmail("a@example.com")  # type: ignore[call-arg]


def test_settings_are_not_payload() -> None:
    assert describe(SendEmail).codec.encode(SendEmail(to="a")) == (
        '{"to":"a","subject":"Welcome!","copies":[]}'
    )


def test_fields_are_inherited() -> None:
    class Urgent(SendEmail):
        reason: str

    job = Urgent(to="a", reason="b")
    codec = describe(Urgent).codec
    assert codec.decode(codec.encode(job)) == job


def test_a_decorated_class_keeps_what_the_decorator_says() -> None:
    @dataclass(kw_only=True, order=True)
    class Ordered(Quiet):
        number: int
        items: list[int] = field(default_factory=list)

    assert Ordered(number=1) < Ordered(number=2)
    assert describe(Ordered).codec.decode('{"number": 1}') == Ordered(number=1, items=[])


def test_slots_make_the_class_twice() -> None:
    @dataclass(slots=True)
    class Slotted(BackgroundJob[Any]):
        number: int

        def run(self, ctx: Any) -> None: ...

    codec = describe(Slotted).codec
    assert codec.decode(codec.encode(Slotted(number=1))) == Slotted(number=1)
    assert Slotted.job_name == "slotted"


def test_a_frozen_decorator_is_refused_where_it_stands() -> None:
    with pytest.raises(TypeError, match="cannot inherit frozen dataclass from a non-frozen one"):

        @dataclass(frozen=True)
        class Frozen(Quiet):  # type: ignore[misc]
            number: int


def test_a_class_without_run_is_a_base_only() -> None:
    class Base(BackgroundJob[Any]):
        tenant: str

    class Work(Base):
        def run(self, ctx: Any) -> None: ...

    with pytest.raises(TypeError, match="abstract class Base"):
        Base(tenant="a")  # type: ignore[abstract]
    with pytest.raises(RegistrationError, match=r"Base has no run method"):
        describe(Base)  # type: ignore[type-abstract]
    assert Work(tenant="a").tenant == "a"


def test_abstract_base_classes_mix_in() -> None:
    class Audited(ABC):
        @abstractmethod
        def audit(self) -> str: ...

    class Base(BackgroundJob[Any], Audited): ...

    class Work(Base):
        def audit(self) -> str:
            return "seen"

        def run(self, ctx: Any) -> None: ...

    assert Work().audit() == "seen"
    with pytest.raises(TypeError, match="abstract class Base"):
        Base()  # type: ignore[abstract]


# Settings ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "job_name"),
    [
        ("SendEmail", "send_email"),
        ("SendEmailJob", "send_email"),
        ("HTTPPing", "http_ping"),
        ("PingHTTP", "ping_http"),
        ("EmailV2", "email_v2"),
        ("Job", "job"),
        ("snake_case", "snake_case"),
        ("X", "x"),
    ],
)
def test_the_default_name(class_name: str, job_name: str) -> None:
    assert type(class_name, (Quiet,), {}).job_name == job_name  # type: ignore[attr-defined]


def test_a_given_name_is_inherited_a_default_one_is_not() -> None:
    class Named(Quiet):
        job_name = "mine"

    class Below(Named): ...

    class Below2(SendEmail): ...

    assert (Below.job_name, Below2.job_name) == ("mine", "below2")


def test_the_documented_defaults() -> None:
    assert (Quiet.queue, Quiet.priority, Quiet.deduplicated) == ("default", 0, False)
    assert (Quiet.timeout, Quiet.transactional, Quiet.archive) == (None, False, False)
    policy = Quiet.policy()
    assert (policy.max_attempts, policy.max_crashes, policy.archive) == (25, 5, False)
    assert policy.backoff == Exponential()


def test_settings_are_inherited_and_gathered() -> None:
    class Tuned(Quiet):
        max_attempts = 3
        backoff = 5
        timeout = timedelta(minutes=1)
        transactional = True

        @staticmethod
        def archive(job: ClaimedJob) -> bool:
            return job.priority > 0

    class Below(Tuned):
        max_crashes = 1

    policy = Below.policy()
    assert (policy.max_attempts, policy.max_crashes, policy.backoff) == (3, 1, Fixed(5.0))
    assert policy.archive is Tuned.archive
    job_type = describe(Below)
    assert (job_type.timeout, job_type.transactional, job_type.is_async) == (60.0, True, True)
    assert describe(SendEmail).timeout is None


@pytest.mark.parametrize("spelling", ["plain", "static"])
def test_functions_are_settings_in_either_spelling(spelling: str) -> None:
    def wait(attempt: int) -> float:
        return attempt * 2.0

    wrap: Any = staticmethod if spelling == "static" else (lambda function: function)

    class Functional(Quiet):
        backoff = wrap(wait)
        archive = wrap(lambda job: job.id == 1)

    policy = Functional.policy()
    assert policy.backoff.delay(3) == 6
    assert callable(policy.archive)
    assert policy.archive(ClaimedJob(1, "a", "b", 0, "{}", 0, 0, False, 1))


async def wait(value: object) -> bool:
    return True


def count(value: object) -> Iterator[int]:
    yield 1


class Waiter:
    async def __call__(self, job: ClaimedJob) -> bool:
        return True


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("job_name", "send email", "job_name is 'send email': use 1 to 100 letters"),
        ("job_name", "", "job_name is ''"),
        ("queue", "é", "queue is 'é'"),
        ("queue", None, "queue is of type NoneType"),
        ("priority", 40_000, "priority is out of range: it must be from -32768 to 32767"),
        ("priority", 1.5, "priority is a float"),
        ("deduplicated", 1, "deduplicated must be True or False"),
        ("transactional", "yes", "transactional must be True or False"),
        ("max_attempts", 0, "max_attempts is out of range"),
        ("max_attempts", True, "max_attempts is a bool"),
        ("max_crashes", 0, "max_crashes is out of range"),
        ("timeout", 0, "timeout is 0: it must be finite and above 0"),
        ("timeout", timedelta(-1), "timeout is -86400"),
        ("timeout", "1m", "timeout is a str"),
        ("backoff", "1m", "backoff is '1m'"),
        ("backoff", -1, "backoff is -1: it must be a finite number of seconds"),
        ("backoff", Exponential, r"backoff is the class Exponential: call it, Exponential\("),
        ("backoff", lambda: 3, "backoff can't be called with one argument: use a function of"),
        ("backoff", lambda attempt, job: 3, "backoff can't be called with one argument"),
        ("timeout", 10**400, "timeout is over a year, which is too long"),
        ("archive", "always", "archive is a str: use True, False, or a function of one argument"),
        ("archive", lambda self, job: True, "archive can't be called with one argument"),
        ("archive", staticmethod(wait), "archive is awaited or iterated by nobody"),
        ("archive", Waiter(), "archive is awaited or iterated by nobody"),
        ("backoff", staticmethod(wait), "backoff is awaited or iterated by nobody"),
        ("backoff", staticmethod(count), "backoff is awaited or iterated by nobody"),
    ],
)
def test_wrong_settings_are_refused_with_the_class(setting: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"Wrong.{message}"):
        type("Wrong", (Quiet,), {setting: value})


@pytest.mark.parametrize("name", sorted(RESERVED))
def test_a_field_named_like_a_setting_is_refused(name: str) -> None:
    """It says what to write instead, where there is a setting of that name."""
    later = "the name is kept for a setting of a later version"
    told = f": {later}" if name in LATER else " is annotated, so it is a field"
    with pytest.raises(ConfigurationError, match=rf"Clash\.{name}{told}"):
        type("Clash", (Quiet,), {"__annotations__": {name: int}, name: 3})


def test_a_class_variable_named_like_a_setting_sets_it() -> None:
    class Annotated(Quiet):
        priority: ClassVar[int] = 3
        queue: ClassVar = "slow"

    assert (Annotated.priority, Annotated.queue) == (3, "slow")
    assert dataclasses.fields(Annotated) == ()


def test_a_clash_in_a_mixed_in_dataclass_is_refused() -> None:
    @dataclass
    class Mixin:
        result: str = ""

    with pytest.raises(ConfigurationError, match=r"Clash\.result"):

        class Clash(Quiet, Mixin): ...


# What a class body says in vain ------------------------------------------------------------------


def test_a_constructor_of_its_own_is_refused() -> None:
    """The dataclass would replace it without a word."""
    with pytest.raises(ConfigurationError, match=r"Own defines __init__.*__post_init__"):

        class Own(Quiet):
            def __init__(self, to: str) -> None: ...


def generator(self: Any, ctx: Any) -> Iterator[None]:
    yield


async def async_generator(self: Any, ctx: Any) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (lambda self: None, "can't be called with one argument"),
        (lambda self, ctx, more: None, "can't be called with one argument"),
        (lambda self, *, ctx: None, "can't be called with one argument"),
        (staticmethod(lambda: None), "can't be called with one argument"),
        (generator, "contains `yield`"),
        (async_generator, "contains `yield`"),
        (3, "is a int"),
    ],
)
def test_a_run_that_can_not_be_called_is_refused_where_it_stands(run: Any, message: str) -> None:
    with pytest.raises(
        ConfigurationError, match=rf"Wrong\.run {message}.*async def run\(self, ctx\)"
    ):
        type("Wrong", (BackgroundJob,), {"run": run})


@pytest.mark.parametrize(
    "run",
    [
        lambda self, ctx: None,
        lambda self, *args, **kwargs: None,
        lambda self, ctx, more=3: None,
        staticmethod(lambda ctx: None),
        classmethod(lambda cls, ctx: None),
    ],
)
def test_any_run_of_one_argument_will_do(run: Any) -> None:
    type("Right", (BackgroundJob,), {"run": run})


@pytest.mark.parametrize("name", sorted(LATER))
def test_a_setting_of_a_later_version_is_refused(name: str) -> None:
    """It would be believed to work."""
    with pytest.raises(ConfigurationError, match=rf"Early\.{name} has no meaning yet"):
        type("Early", (Quiet,), {name: True})


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("max_retries", "max_attempts"),
        ("max_retry", "max_attempts"),
        ("num_retries", "max_attempts"),
        ("attempts", "max_attempts"),
        ("retry", "max_attempts"),
        ("prio", "priority"),
        ("name", "job_name"),
        ("deduplicate", "deduplicated"),
        ("max_attempt", "max_attempts"),
        ("timout", "timeout"),
        ("prioritiy", "priority"),
        ("job_type", "job_name"),
        ("dedup", "deduplicated"),
        ("Queue", "queue"),
        ("MAX_ATTEMPTS", "max_attempts"),
        ("jobName", "job_name"),
    ],
)
def test_what_looks_like_a_setting_draws_a_warning(name: str, meant: str) -> None:
    with pytest.warns(
        UserWarning, match=rf"Slip\.{name} is no setting.*is {meant} meant"
    ) as caught:
        type("Slip", (Quiet,), {name: 3})
    assert caught[0].filename == __file__


def test_what_does_not_look_like_a_setting_is_left_alone() -> None:
    class Fine(Quiet):
        name: str  # payload
        retries: ClassVar[int] = 3
        template = "welcome.html"
        URL = "postgresql://"
        QUEUES = ("a", "b")

        class Priority: ...

        def max_retries(self) -> int:
            return 3

    assert [item.name for item in dataclasses.fields(Fine)] == ["name"]
