"""What is shown in place of an exception that says too much: the same, in other words."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from workers.runtime.failure import MAX_ERROR, describe, told
from workers.runtime.stand_in import stand_in

CANARY = "canary-4711"


def hide(text: str) -> str:
    return text.replace(CANARY, "***")


def shown(error: BaseException) -> str:
    return "".join(traceback.format_exception(error)) + repr(error)


class NeedsMuchError(Exception):
    """Can't be made from its text, and carries more than that."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code)
        self.message = message

    def __str__(self) -> str:
        return f"{self.message} ({self.args[0]})"


class KnowsItsSubclassesError(Exception):
    known: ClassVar[list[type]] = []

    def __init_subclass__(cls) -> None:
        cls.known.append(cls)


class HidesItsCauseError(Exception):
    @property
    def __cause__(self) -> BaseException | None:
        return None

    @__cause__.setter
    def __cause__(self, value: object) -> None:
        raise TypeError


class MuteError(Exception):
    def __str__(self) -> str:
        raise SystemExit


def made_of_many() -> BaseException:
    inner = [ValueError(CANARY), ExceptionGroup(f"inner {CANARY}", [KeyError(CANARY)])]
    return ExceptionGroup(f"outer {CANARY}", inner)


def noted() -> BaseException:
    error = TypeError("plain")
    error.add_note(f"a note about {CANARY}")
    return error


def caused() -> BaseException:
    try:
        try:
            raise KeyError(CANARY)
        except KeyError as error:
            raise ValueError("plain") from error
    except ValueError as error:
        return error


def during() -> BaseException:
    try:
        try:
            raise KeyError(CANARY)
        except KeyError:
            raise ValueError("plain")  # noqa: B904 - on purpose
    except ValueError as error:
        return error


def round_and_round() -> BaseException:
    error = ValueError(CANARY)
    error.__cause__ = error
    return error


def endless() -> BaseException:
    error = ValueError(CANARY)
    for _ in range(5000):
        following = ValueError(CANARY)
        following.__cause__, error = error, following
    return error


ERRORS: list[Callable[[], BaseException]] = [
    lambda: ValueError(f"about {CANARY}"),
    lambda: KeyError(CANARY),
    lambda: SystemExit(CANARY),
    lambda: OSError(2, CANARY, CANARY),
    lambda: UnicodeDecodeError("utf-8", CANARY.encode(), 0, 1, CANARY),
    lambda: SyntaxError(CANARY, (CANARY, 1, 1, CANARY)),
    lambda: StopIteration(CANARY),
    lambda: NeedsMuchError(5, CANARY),
    lambda: KnowsItsSubclassesError(CANARY),
    lambda: HidesItsCauseError(CANARY),
    made_of_many,
    noted,
    caused,
    during,
    round_and_round,
    endless,
]


@pytest.mark.parametrize("make", ERRORS)
def test_it_is_alike_but_for_the_words(make: Callable[[], BaseException]) -> None:
    error = make()
    assert CANARY in shown(error)
    text, other = told(error, hide)
    assert CANARY not in text + shown(other)
    assert len(text) <= MAX_ERROR
    assert "***" in shown(other)
    assert type(other).__qualname__ == type(error).__qualname__
    assert type(other).__module__ == type(error).__module__
    assert other.__traceback__ is error.__traceback__


@pytest.mark.parametrize("make", [ERRORS[0], ERRORS[3], ERRORS[7], made_of_many, caused])
def test_it_is_caught_as_what_it_is(make: Callable[[], BaseException]) -> None:
    error = make()
    other = stand_in(error, hide)
    assert isinstance(other, type(error))
    assert str(other) == hide(str(error))


def test_its_text_is_the_same_but_for_the_secret() -> None:
    assert "".join(traceback.format_exception(stand_in(made_of_many(), hide))) == hide(
        "".join(traceback.format_exception(made_of_many()))
    )


def test_a_class_that_knows_its_subclasses_gets_no_new_one() -> None:
    stand_in(KnowsItsSubclassesError(CANARY), hide)
    assert KnowsItsSubclassesError.known == []


def test_without_secrets_it_stays_what_it_is() -> None:
    error = caused()
    assert told(error, lambda text: text)[1] is error
    assert told(MuteError(CANARY), hide)[0] == describe(MuteError())


@pytest.mark.parametrize("kind", [MuteError, HidesItsCauseError])
def test_what_misbehaves_is_stood_in_for(kind: type[Exception]) -> None:
    error = kind(CANARY)
    error.add_note(CANARY)
    assert CANARY not in shown(stand_in(error, hide))


def test_passwords_are_taken_out_of_every_error() -> None:
    error: Any = ConnectionError("no answer from postgresql://shop:hunter2@db/shop")
    text, other = told(error)
    assert "hunter2" not in text + shown(other)
    assert "postgresql://shop:***@db/shop" in text
    assert isinstance(other, ConnectionError)


def test_a_secret_is_taken_out_before_the_text_is_cut() -> None:
    """Half of it would be left."""
    for size in range(MAX_ERROR // 3 - 30, MAX_ERROR // 3 + 5):
        text = describe(ValueError("x" * size + CANARY + "y" * MAX_ERROR), hide)
        assert "cana" not in text
