"""Annotations of job classes are resolved when the class is first used, wherever their names live."""

from __future__ import annotations

import inspect
import sys
from dataclasses import dataclass
from threading import Thread
from typing import TYPE_CHECKING, Any, ClassVar, Final, Generic, TypeVar

import pytest

from workers import BackgroundJob, InvalidJobError, RegistrationError
from workers.cli.app import _would_do, takes_database_url
from workers.job_type import describe

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers

Item = TypeVar("Item")


class Quiet(BackgroundJob[Any]):
    """A base with a run method."""

    async def run(self, ctx: Any) -> None: ...


def test_a_field_that_can_not_be_stored_is_named() -> None:
    class Threads(Quiet):
        number: int = 0
        threads: list[Thread] | None = None

    class Choices(Quiet):
        choice: int | list[int] | set[int] = 0

    with pytest.raises(
        RegistrationError, match=r"Threads\.threads: .* type Thread, which can't be"
    ):
        describe(Threads)
    with pytest.raises(RegistrationError, match=r"Choices\.choice: .*not supported"):
        describe(Choices)


def test_annotations_may_name_locals_and_what_comes_later() -> None:
    @dataclass
    class Before:
        number: int

    class Local(Quiet):
        before: Before
        after: list[After]
        self_like: Local | None = None

    @dataclass
    class After:
        text: str

    job = Local(before=Before(1), after=[After("a")], self_like=Local(before=Before(2), after=[]))
    codec = describe(Local).codec
    assert codec.decode(codec.encode(job)) == job
    assert inspect.get_annotations(Local)["before"] is Before
    assert Local._workers_frames == ()


def test_annotations_may_name_locals_of_outer_functions() -> None:
    @dataclass
    class Outer:
        number: int

    def inner() -> type[BackgroundJob[Any]]:
        class Local(Quiet):
            outer: Outer
            local: Inner

        @dataclass
        class Inner:
            number: int

        return Local

    job_class: Any = inner()
    job: Any = describe(job_class).codec.decode('{"outer": {"number": 1}, "local": {"number": 2}}')
    assert job.outer == Outer(1)


def test_a_base_resolves_where_it_was_defined() -> None:
    def make() -> Any:
        @dataclass
        class Hidden:
            number: int

        class Base(Quiet):
            hidden: Hidden

        return Base

    class Below(make()):  # type: ignore[misc]
        text: str

    job: Any = describe(Below).codec.decode('{"hidden": {"number": 1}, "text": "a"}')
    assert (job.hidden.number, job.text) == (1, "a")


def test_generic_bases_are_filled_in() -> None:
    class Holder(Quiet, Generic[Item]):
        item: Item

    class Numbers(Holder[int]): ...

    codec = describe(Numbers).codec
    assert codec.decode('{"item": 1}') == Numbers(item=1)
    with pytest.raises(InvalidJobError, match="`item`: expected `int`"):
        codec.decode('{"item": "a"}')


def test_a_name_for_type_checkers_only_is_named() -> None:
    class Priced(Quiet):
        price: OnlyForTypeCheckers

    with pytest.raises(RegistrationError, match=r"Priced\.price: the name 'OnlyForTypeCheckers'"):
        describe(Priced)


def test_class_variables_may_be_for_type_checkers_only() -> None:
    class Cached(Quiet):
        cache: ClassVar[dict[str, OnlyForTypeCheckers]] = {}

        text: str = ""

    assert describe(Cached).codec.encode(Cached()) == '{"text":""}'


def test_a_field_may_be_final() -> None:
    class Fixed(Quiet):
        number: Final[int]

    assert describe(Fixed).codec.encode(Fixed(number=1)) == '{"number":1}'


@pytest.mark.parametrize("annotation", ["1 +", "dataclasses.InitVar[int]", "object", "len"])
def test_an_annotation_that_is_no_type_is_refused(annotation: str) -> None:
    odd: Any = type("Odd", (Quiet,), {"__annotations__": {"a": annotation}, "__module__": __name__})
    with pytest.raises(RegistrationError, match="Odd"):
        describe(odd)


LATE = """
from typing import TYPE_CHECKING, Any, ClassVar
from workers import BackgroundJob, Runner

if TYPE_CHECKING:
    from contexts import Context

class Late(BackgroundJob[Any]):
    text: str = ""
    cache: ClassVar[dict[str, Context]] = {}

    async def run(self, ctx: Context) -> Defined: ...
    def backoff(attempt: Attempts) -> Defined: return 1.0
    @staticmethod
    def archive(job: Claimed) -> Defined: return True

def runner(database_url: Url) -> Runner[Context]: ...

class Defined: ...
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="annotations are evaluated at once")
def test_functions_may_be_annotated_with_what_is_not_there() -> None:
    """From 3.14 on, and without `from __future__ import annotations`."""
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(LATE, "late.py", "exec", dont_inherit=True), names)
    assert describe(names["Late"]).codec.encode(names["Late"]()) == '{"text":""}'
    assert takes_database_url(names["runner"], "late:runner")
    assert _would_do(names["runner"], __name__)
