"""What a job class declares: read and checked when the class is defined, so that a slip is found at import, not at 3 a.m."""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import re
import warnings
from collections.abc import Callable
from datetime import timedelta
from types import FunctionType
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from ._annotations import own_annotations, signature
from .backoff import Backoff, as_backoff
from .config import (
    check_name,
    check_number,
    check_priority,
    returns_at_once,
    seconds,
    takes_one_argument,
)
from .errors import ConfigurationError
from .job import ClaimedJob
from .lifecycle import JobPolicy

if TYPE_CHECKING:
    from .background_job import BackgroundJob

__all__ = [
    "LATER",
    "RESERVED",
    "SETTINGS",
    "ArchivePolicy",
    "BackoffPolicy",
    "check_body",
    "check_settings",
    "payload_fields",
    "refuse_clashes",
    "take_name",
]

SETTINGS = frozenset(
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
    ]
)
#: Names that mean nothing yet.
LATER = frozenset(
    [
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
    ]
)
#: No field may have one of these names: they are settings and methods of job classes, now or later.
RESERVED = SETTINGS | LATER | {"run", "policy", "enqueue", "enqueue_batch"}

#: What other systems call the same; what differs by a slip of the fingers is found without a table.
_ELSEWHERE = {
    "name": "job_name",
    "job_type": "job_name",
    "task_name": "job_name",
    "queue_name": "queue",
    "attempts": "max_attempts",
    "retry": "max_attempts",
    "retries": "max_attempts",
    "num_retries": "max_attempts",
    "max_retry": "max_attempts",
    "max_retries": "max_attempts",
    "max_tries": "max_attempts",
    "retry_limit": "max_attempts",
    "retry_delay": "backoff",
    "retry_backoff": "backoff",
    "prio": "priority",
    "dedup": "deduplicated",
    "dedupe": "deduplicated",
    "deduplicate": "deduplicated",
    "time_limit": "timeout",
    "transaction": "transactional",
}


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


def payload_fields(cls: type) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a job class, which is a dataclass without saying so to type checkers either."""
    return dataclasses.fields(cls)


def take_name(cls: type[BackgroundJob[Any]]) -> bool:
    """Set a default `job_name` unless one was given, here or in a base; return whether one was."""
    if "job_name" in vars(cls) or cls._workers_named:
        return True
    name = cls.__name__.removesuffix("Job") or cls.__name__
    cls.job_name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()
    return False


def refuse_clashes(cls: type[BackgroundJob[Any]]) -> None:
    """Raise ConfigurationError for a field that is named like a setting."""
    for field in payload_fields(cls):
        if field.name in LATER:
            raise ConfigurationError(
                f"{cls.__qualname__}.{field.name}: the name is kept for a setting of a later version, choose another one"
            )
        if field.name in RESERVED:
            raise ConfigurationError(
                f"{cls.__qualname__}.{field.name} is annotated, so it is a field of the payload, but job classes use "
                f"that name themselves: write `{field.name} = ...` without annotation to set it, or "
                "give the field another name"
            )


def check_body(cls: type[BackgroundJob[Any]]) -> None:
    """Refuse what the class body says in vain: an `__init__`, a `run` that can't be called, settings of the future.

    A name that looks like a setting and is none draws a warning. Raises ConfigurationError.
    """
    where, body = cls.__qualname__, vars(cls)
    plain = body.keys() - own_annotations(cls).keys()
    if "__init__" in body:
        raise ConfigurationError(
            f"{where} defines __init__, which job classes get from their fields: annotate the fields, and put what is to "
            "be done with them into __post_init__"
        )
    if "run" in plain:
        _check_run(where, body["run"])
    for name in plain:
        if name in LATER:
            raise ConfigurationError(
                f"{where}.{name} has no meaning yet: the name is kept for a later version, choose another one"
            )
        meant = _ELSEWHERE.get(name) or _slip(name)
        if meant is not None and not isinstance(body[name], FunctionType | property | type):
            warnings.warn(
                f"{where}.{name} is no setting of a job class: is {meant} meant? "
                f"If not, `{name}: ClassVar = ...` says so",
                stacklevel=3,
            )


def _slip(name: str) -> str | None:
    if name in SETTINGS or name.startswith("_"):
        return None
    letters = name.lower().replace("_", "")  # of Queue, MAX_ATTEMPTS, jobName
    for setting in SETTINGS:
        if setting.replace("_", "") == letters:
            return setting
    return next(iter(difflib.get_close_matches(name, SETTINGS, n=1, cutoff=0.85)), None)


def _check_run(where: str, run: Any) -> None:
    advice = "write `async def run(self, ctx)`, or `def run(self, ctx)` for a thread"
    function = run.__func__ if isinstance(run, staticmethod | classmethod) else run
    if not callable(function):
        raise ConfigurationError(f"{where}.run is a {type(run).__name__}: {advice}")
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(
            f"{where}.run contains `yield`, so that calling it runs nothing of it: {advice}"
        )
    arguments = (None,) if isinstance(run, staticmethod) else (None, None)
    try:
        signature(function).bind(*arguments)
    except TypeError:
        raise ConfigurationError(
            f"{where}.run can't be called with one argument, the runner's context: {advice}"
        ) from None
    except ValueError:  # a builtin without a signature
        return


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
    advice = "use True, False, or a function of one argument, the ClaimedJob"
    if not callable(value):
        raise ConfigurationError(f"{what} is a {type(value).__name__}: {advice}")
    if not takes_one_argument(value):
        raise ConfigurationError(f"{what} can't be called with one argument: {advice}")
    if not returns_at_once(value):
        raise ConfigurationError(f"{what} is awaited or iterated by nobody: {advice}")
