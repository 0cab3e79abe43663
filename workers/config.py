"""Settings, checked once where they are given. Durations are seconds; a timedelta is accepted for any of them."""

from __future__ import annotations

import inspect
import math
import os
import re
import socket
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec

from ._annotations import signature
from .errors import ConfigurationError
from .job import MAX_PRIORITY, MIN_PRIORITY

__all__ = [
    "YEAR",
    "QueueConfig",
    "RunnerConfig",
    "check_name",
    "check_number",
    "check_priority",
    "returns_at_once",
    "seconds",
    "takes_one_argument",
]

#: In seconds. Nothing that a runner does takes longer.
YEAR = 365.25 * 86_400

#: Job types and queues. The migrations' SQL function for other languages checks the same pattern.
_NAME = re.compile(r"[A-Za-z0-9_.:-]{1,100}")
#: What a call of it does is not what its body says: that is awaited or iterated later.
_LATER = (inspect.iscoroutinefunction, inspect.isgeneratorfunction, inspect.isasyncgenfunction)


def check_name(what: str, value: object) -> str:
    """Return `value` if it can name a job type or a queue; raise ConfigurationError if not."""
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    shown = repr(value[:120]) if isinstance(value, str) else f"of type {type(value).__name__}"
    raise ConfigurationError(f"{what} is {shown}: use 1 to 100 letters, digits or any of _ . : -")


def check_priority(what: str, value: object) -> int:
    """Return `value` as a plain int if it is a smallint; raise ConfigurationError if not."""
    return check_number(what, value, MIN_PRIORITY, MAX_PRIORITY)


def check_number(what: str, value: object, least: int, most: int = 2**31 - 1) -> int:
    """Return `value` as a plain int if it is one from `least` to `most`; raise ConfigurationError if not."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise ConfigurationError(f"{what} is a {type(value).__name__}: it must be an integer")
    if not least <= value <= most:
        raise ConfigurationError(f"{what} is out of range: it must be from {least} to {most}")
    return int(value)


def seconds(what: str, value: object, *, positive: bool = False, most: float = YEAR) -> float:
    """Return a duration, given in seconds or as a timedelta; raise ConfigurationError if it is none, or over `most`."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if not isinstance(value, int | float) or isinstance(value, bool):
        kind = type(value).__name__
        raise ConfigurationError(f"{what} is a {kind}: use seconds or a timedelta")
    # by comparisons only: there are integers that no float can hold
    if not 0 <= value < math.inf or (positive and value == 0):
        wanted = "above 0" if positive else "0 or more"
        raise ConfigurationError(f"{what} is {value!r}: it must be finite and {wanted}")
    if value > most:
        limit = "a year" if most == YEAR else f"{most / YEAR:g} years"
        raise ConfigurationError(f"{what} is over {limit}, which is too long")
    return float(value)


def takes_one_argument(function: Callable[..., Any]) -> bool:
    """Whether it can be called with one positional argument, as far as can be seen."""
    try:
        signature(function).bind(None)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def returns_at_once(function: Callable[..., Any]) -> bool:
    """Whether a call runs it, and gives what it returns: not so of coroutine functions and generators."""
    parts = function, getattr(function, "__call__", None)  # noqa: B004 - its own, where it is an object
    return not any(is_kind(part) for is_kind in _LATER for part in parts)


class QueueConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How one runner works one queue.

    `num_workers` jobs run at a time; the queue is looked at every `poll_interval` seconds, plus up to `jitter` at random.
    """

    num_workers: int = 10
    poll_interval: float = 1.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        check_number("num_workers", self.num_workers, 1, 10_000)
        _set_seconds(self, "poll_interval", positive=True)
        _set_seconds(self, "jitter")


class RunnerConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How a runner lives.

    `lease`: seconds after which a session that does not renew it counts as dead. `grace`: seconds that running jobs get to
    finish at shutdown. `loop_stall_limit`: seconds after which a blocked event loop is reported. `listen`: False to poll
    only. `max_batch`: the most jobs that one claim takes. `name`: what this runner is called in logs and tables.
    """

    lease: float = 15.0
    grace: float = 30.0
    loop_stall_limit: float = 60.0
    listen: bool = True
    max_batch: int = 500
    name: str = msgspec.field(default_factory=lambda: f"{socket.gethostname()}:{os.getpid()}")

    def __post_init__(self) -> None:
        _set_seconds(self, "lease", positive=True)
        _set_seconds(self, "grace")
        _set_seconds(self, "loop_stall_limit", positive=True)
        check_number("max_batch", self.max_batch, 1, 10_000)
        if not isinstance(self.listen, bool):
            raise ConfigurationError(f"listen is a {type(self.listen).__name__}: use True or False")
        # a host's name is not ours to choose: anything printable will do
        name: object = self.name
        if not (isinstance(name, str) and 0 < len(name) <= 200 and name.isprintable()):
            raise ConfigurationError("name must be 1 to 200 printable characters")
        if self.lease < 1:
            raise ConfigurationError(f"lease is {self.lease!r}: it must be at least 1 second")


def _set_seconds(config: msgspec.Struct, name: str, *, positive: bool = False) -> None:
    """Check a duration and keep it as a float of seconds."""
    value = seconds(name, getattr(config, name), positive=positive)
    msgspec.structs.force_setattr(config, name, value)
