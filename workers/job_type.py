"""What is known of a job class: its settings, checked when it is defined, and its codec, made when it is first used."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from datetime import timedelta
from threading import RLock
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from ._annotations import resolve
from .backoff import Backoff, as_backoff
from .codec import Codec
from .config import check_name, check_number, check_priority, seconds
from .errors import ConfigurationError, RegistrationError
from .job import ClaimedJob
from .lifecycle import JobPolicy

if TYPE_CHECKING:
    from .background_job import BackgroundJob

__all__ = [
    "RESERVED",
    "ArchivePolicy",
    "BackoffPolicy",
    "JobType",
    "check_settings",
    "describe",
    "refuse_clashes",
    "take_name",
]

#: No field may have one of these names: they are settings and methods of job classes, now or later.
RESERVED = frozenset(
    [
        "job_name",
        "queue",
        "priority",
        "deduplicated",
        "max_attempts",
        "max_crashes",
        "backoff",
        "timeout",
        "transactional",
        "archive",
        "run",
        "policy",
        "enqueue",
        "enqueue_batch",
        "unique",
        "keep_result",
        "upgrade",
        "schedule",
        "concurrency",
        "rate_limit",
        "depends_on",
        "result",
        "progress",
        "tags",
        "secret",
    ]
)

_lock = RLock()


# Type checkers take a plain function in a class body for a method and drop its first argument, from what they infer and from
# a declared Callable alike; a static method keeps it, as does a declared protocol. Both spellings are welcome.
class _ArchivePredicate(Protocol):
    def __call__(self, job: ClaimedJob, /) -> bool: ...


class _BackoffFunction(Protocol):
    def __call__(self, attempt: int, /) -> float | timedelta: ...


#: Whether a completed job is kept.
ArchivePolicy: TypeAlias = bool | Callable[[ClaimedJob], bool] | _ArchivePredicate
#: How long to wait between attempts: a strategy, a function of the number of attempts made, or seconds.
BackoffPolicy: TypeAlias = (
    Backoff | Callable[[int], float | timedelta] | _BackoffFunction | float | timedelta
)


class JobType(msgspec.Struct, frozen=True, kw_only=True):
    """A job class, ready to be written and run. `timeout` is in seconds; `is_async`: `run` is an `async def`."""

    name: str
    job_class: type[BackgroundJob[Any]]
    codec: Codec[BackgroundJob[Any]]
    policy: JobPolicy
    queue: str
    is_async: bool
    timeout: float | None
    transactional: bool


def describe(cls: type[BackgroundJob[Any]]) -> JobType:
    """Return what is known of `cls`; RegistrationError if its annotations can't be resolved or stored."""
    if (known := cls._workers_type) is None:
        with _lock:  # a second thread does it once more, to the same end
            cls._workers_type = known = _describe(cls)
    return known


def _describe(cls: type[BackgroundJob[Any]]) -> JobType:
    if getattr(cls, "__abstractmethods__", None):
        raise RegistrationError(
            f"{cls.__qualname__} has no run method: it can only be derived from"
        )
    _repair_fields(cls)
    for base in reversed(cls.__mro__):
        if "_workers_frames" in vars(base):
            resolve(base, base._workers_frames)  # type: ignore[attr-defined]
            base._workers_frames = ()  # type: ignore[attr-defined]
    return JobType(
        name=cls.job_name,
        job_class=cls,
        codec=Codec(cls, cls.job_name, stable=cls.deduplicated),
        policy=cls._workers_policy,
        queue=cls.queue,
        is_async=inspect.iscoroutinefunction(cls.run),
        timeout=None if cls.timeout is None else seconds("timeout", cls.timeout),
        transactional=cls.transactional,
    )


def _repair_fields(cls: type[BackgroundJob[Any]]) -> None:
    """Give back the default factories that a second dataclass decorator, the user's, could not see."""
    for field in _fields(cls):
        first = cls._workers_fields.get(field.name)
        if first is not None and field.default is field.default_factory is dataclasses.MISSING:
            field.default_factory = first.default_factory


def _fields(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cls)


def take_name(cls: type[BackgroundJob[Any]]) -> bool:
    """Set a default `job_name` unless one was given, here or in a base; return whether one was."""
    if "job_name" in vars(cls) or cls._workers_named:
        return True
    name = cls.__name__.removesuffix("Job") or cls.__name__
    cls.job_name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return False


def refuse_clashes(cls: type[BackgroundJob[Any]]) -> None:
    """Raise TypeError for a field that is named like a setting."""
    for field in _fields(cls):
        if field.name in RESERVED:
            raise TypeError(
                f"{cls.__qualname__}.{field.name} is annotated, so it is a field of the payload, but job classes use "
                f"that name themselves, now or later: write `{field.name} = ...` without annotation to set it, or "
                "give the field another name"
            )


def check_settings(cls: type[BackgroundJob[Any]]) -> JobPolicy:
    """Check the settings of `cls`; ConfigurationError names the first one that is wrong."""
    where = f"{cls.__qualname__}."
    check_name(f"{where}job_name", cls.job_name)
    check_name(f"{where}queue", cls.queue)
    check_priority(f"{where}priority", cls.priority)
    for name in ("deduplicated", "transactional"):
        if not isinstance(getattr(cls, name), bool):
            raise ConfigurationError(f"{where}{name} must be True or False")
    if cls.timeout is not None:
        seconds(f"{where}timeout", cls.timeout, positive=True)
    if not isinstance(cls.archive, bool):
        _check_predicate(f"{where}archive", cls.archive)
    try:
        backoff = as_backoff(cls.backoff)
    except ConfigurationError as error:
        raise ConfigurationError(f"{where}{error}") from None
    return JobPolicy(
        max_attempts=check_number(f"{where}max_attempts", cls.max_attempts, 1),
        max_crashes=check_number(f"{where}max_crashes", cls.max_crashes, 1, 32767),
        backoff=backoff,
        archive=cls.archive,
    )


def _check_predicate(what: str, value: object) -> None:
    advice = "use True, False, or a static method of one argument, the ClaimedJob"
    if not callable(value):
        raise ConfigurationError(f"{what} is a {type(value).__name__}: {advice}")
    try:
        inspect.signature(value).bind(None)
    except TypeError:
        raise ConfigurationError(f"{what} can't be called with one argument: {advice}") from None
    except ValueError:  # a builtin without a signature
        return
