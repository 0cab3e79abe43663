"""How long a failed job waits for its next attempt.

A strategy is an object with `delay(attempt) -> seconds`, where attempt is the number of attempts made so far (1 after the
first failure). A plain function, or seconds, will do as well: see `as_backoff`.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from datetime import timedelta
from typing import Protocol

import msgspec

from .config import YEAR, returns_at_once, takes_one_argument
from .errors import ConfigurationError

__all__ = ["Backoff", "Exponential", "Fixed", "Linear", "as_backoff"]


#: Seconds: what is longer is a mistake, and some numbers are no dates.
_MOST = 100 * YEAR


class Backoff(Protocol):
    """A retry strategy."""

    def delay(self, attempt: int) -> float:
        """Seconds to wait after `attempt` attempts."""


class Exponential(msgspec.Struct, frozen=True):
    """base * factor ** (attempt - 1) seconds, at most `cap`; then spread by `jitter` (0.1: up to 10% more or less).

    The default is the original's 60 s * 2^n, with the jitter that keeps a burst of failures from coming back as a burst,
    capped at a day.
    """

    base: float = 60.0
    factor: float = 2.0
    cap: float = 86_400.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        _check(base=self.base, cap=self.cap)
        _check_numbers(factor=self.factor, jitter=self.jitter)
        if not self.factor >= 1:
            raise ConfigurationError(f"factor is {self.factor}: it must be at least 1")
        if not 0 <= self.jitter <= 1:
            raise ConfigurationError(f"jitter is {self.jitter}: it must be between 0 and 1")

    def delay(self, attempt: int) -> float:
        """Seconds to wait after `attempt` attempts."""
        try:  # as floats: an integer would grow without end
            seconds = min(self.cap, self.base * float(self.factor) ** max(attempt - 1, 0))
        except OverflowError:
            seconds = self.cap
        return seconds * (1 + self.jitter * (2 * random.random() - 1))


class Linear(msgspec.Struct, frozen=True):
    """step * attempt seconds, at most `cap`."""

    step: float = 60.0
    cap: float = 86_400.0

    def __post_init__(self) -> None:
        _check(step=self.step, cap=self.cap)

    def delay(self, attempt: int) -> float:
        """Seconds to wait after `attempt` attempts."""
        return min(self.cap, self.step * attempt)


class Fixed(msgspec.Struct, frozen=True):
    """The same number of seconds each time."""

    seconds: float

    def __post_init__(self) -> None:
        _check(seconds=self.seconds)

    def delay(self, attempt: int) -> float:
        """Seconds to wait after `attempt` attempts."""
        return self.seconds


class _Function(msgspec.Struct, frozen=True):
    function: Callable[[int], float | timedelta]

    def delay(self, attempt: int) -> float:
        value = self.function(attempt)
        return value.total_seconds() if isinstance(value, timedelta) else float(value)


def as_backoff(value: Backoff | Callable[[int], float | timedelta] | float | timedelta) -> Backoff:
    """The strategy that `value` means: a strategy, a function of the attempt, or a fixed number of seconds.

    Raises ConfigurationError for anything else.
    """
    given: object = value
    if isinstance(given, timedelta):
        given = given.total_seconds()
    if isinstance(given, int | float) and not isinstance(given, bool):
        _check(backoff=given)
        return Fixed(float(given))
    if isinstance(given, type):
        raise ConfigurationError(
            f"backoff is the class {given.__name__}: call it, {given.__name__}(...)"
        )
    function = getattr(given, "delay", given)
    if not callable(function):
        raise ConfigurationError(
            f"backoff is {value!r}: use a strategy, a function of the attempt, or seconds"
        )
    if not takes_one_argument(function):
        raise ConfigurationError(
            "backoff can't be called with one argument: use a function of the number of attempts made"
        )
    if not returns_at_once(function):
        raise ConfigurationError(
            "backoff is awaited or iterated by nobody: use a plain function of the number of attempts made"
        )
    return value if hasattr(value, "delay") else _Function(function)


def _check(**settings: float) -> None:
    _check_numbers(**settings)
    for name, value in settings.items():
        if not 0 <= value < float("inf"):
            raise ConfigurationError(
                f"{name} is {value}: it must be a finite number of seconds, 0 or more"
            )
        if value > _MOST:
            raise ConfigurationError(f"{name} is over 100 years, which is too long")


def _check_numbers(**settings: object) -> None:
    for name, value in settings.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ConfigurationError(f"{name} is a {type(value).__name__}: it must be a number")
