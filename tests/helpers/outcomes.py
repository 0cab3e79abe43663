"""Exceptions and results that nobody can show, or store."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import cache
from typing import Any

from workers import Cancel, Discard, InvalidJobError, JobState, Snooze

__all__ = ["RAISED", "RETURNED", "STEERED", "Leaver", "NoReason", "raised"]

_HUGE = 100_000_000


@cache
def _huge(text: str) -> str:
    """`text` again and again; made once, as making it is not what is to be looked at."""
    return text * (_HUGE // len(text))


class Odd(BaseException):
    """Neither an Exception nor one of the known others."""


class Mute(Exception):  # noqa: N818
    """Can't say what it is."""

    def __str__(self) -> str:
        raise RuntimeError("no words")

    __repr__ = __str__


class Leaver(Exception):  # noqa: N818
    """Would end the process when it is asked for its text."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Endless(Exception):  # noqa: N818
    """Its cause is itself."""

    def __init__(self) -> None:
        super().__init__("round and round")
        self.__cause__ = self


class Classless(Exception):  # noqa: N818
    """Says nothing of what it is, not even to isinstance."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        raise RuntimeError("no class for you")


class Closed(Exception):  # noqa: N818
    """Can be asked for nothing at all."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError("no attributes")


class NoReason(Cancel):
    """Raises when it is asked why."""

    @property
    def reason(self) -> str:
        raise SystemExit("no reason")

    @reason.setter
    def reason(self, value: str) -> None: ...


class NoSeconds(Snooze):
    """Raises when it is asked for how long."""

    @property
    def seconds(self) -> float:
        raise KeyboardInterrupt

    @seconds.setter
    def seconds(self, value: float) -> None: ...


def deep() -> BaseException:
    try:
        return deep()
    except RecursionError as error:
        return error


RAISED: dict[str, tuple[Callable[[], BaseException], str]] = {
    "value_error": (lambda: ValueError("plain"), "ValueError: plain"),
    "system_exit": (lambda: SystemExit(2), "SystemExit: 2"),
    "keyboard_interrupt": (KeyboardInterrupt, "KeyboardInterrupt"),
    "base": (lambda: Odd("odd"), "Odd: odd"),
    "generator_exit": (GeneratorExit, "GeneratorExit"),
    "stop_iteration": (lambda: StopIteration(1), "StopIteration"),
    "stop_async": (lambda: StopAsyncIteration(1), "StopAsyncIteration"),
    "cancelled": (asyncio.CancelledError, "the job waited for was cancelled"),
    "mute": (Mute, "Mute"),
    "leaver": (Leaver, "Leaver"),
    "endless": (Endless, "round and round"),
    "group": (lambda: ExceptionGroup("two", [ValueError("a"), TypeError("b")]), "TypeError: b"),
    "nul": (lambda: ValueError("a\0b"), "a\\x00b"),
    "surrogate": (lambda: ValueError("a\ud800b"), "a\\ud800b"),
    "huge": (lambda: ValueError(_huge("x")), "xx\n"),
    "many_lines": (lambda: ValueError(_huge("x\n")), "x\n"),
    "many_surrogates": (lambda: ValueError(_huge("\ud800")), "\\ud800"),
    "many_nuls": (lambda: ValueError(_huge("\0")), "\\x00"),
    "recursion": (deep, "RecursionError"),
    "unprintable_args": (lambda: ValueError(Mute()), "ValueError"),
    "classless": (Classless, "Classless"),
    "closed": (Closed, "Closed"),
    "no_seconds": (lambda: NoSeconds(1), "NoSeconds"),
    "invalid_job": (lambda: InvalidJobError("a job it wanted to enqueue"), "a job it wanted"),
}

#: Those that say themselves what becomes of the job: that, and a part of the reason.
STEERED: dict[str, tuple[Callable[[], BaseException], JobState, str]] = {
    "cancel_nul": (lambda: Cancel("a\0b\ud800"), JobState.CANCELLED, "a\\x00b\\ud800"),
    "cancel_huge": (lambda: Cancel(_huge("x\n")), JobState.CANCELLED, "x\nx"),
    "cancel_mute": (NoReason, JobState.CANCELLED, "text can't be had"),
    "discard_nul": (lambda: Discard("a\0b\ud800"), JobState.DEAD, "a\\x00b\\ud800"),
    "discard_huge": (lambda: Discard(_huge("x\n")), JobState.DEAD, "x\nx"),
    "discard_leaver": (lambda: Discard(Leaver()), JobState.DEAD, "text can't be had"),  # type: ignore[arg-type]
}


def raised(what: str) -> BaseException:
    """One of both."""
    return RAISED[what][0]() if what in RAISED else STEERED[what][0]()


RETURNED: dict[str, Callable[[], object]] = {
    "nul": lambda: "a\0b",
    "surrogate": lambda: "a\ud800b",
    "huge": lambda: _huge("x"),
    "nan": lambda: float("nan"),
    "mute": Mute,
    "leaver": Leaver,
    "endless": Endless,
    "exception": lambda: ValueError("returned, not raised"),
}
