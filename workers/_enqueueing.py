"""What `enqueue` and `enqueue_batch` check and encode before anything is sent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from itertools import islice
from typing import TYPE_CHECKING, Any

from .config import YEAR, check_name, check_priority, seconds
from .errors import ConfigurationError, InvalidJobError
from .job_type import describe, describe_anew

if TYPE_CHECKING:
    from .background_job import BackgroundJob

__all__ = ["MAX_DELAY", "encode_all", "parameters", "refuse_base"]

#: Jobs that are encoded at once: few enough for the garbage collector to find no reason to begin.
_BLOCK = 150
#: The longest `delay`: 100 years, which PostgreSQL's and Python's calendars both hold.
MAX_DELAY = 100 * YEAR


def parameters(
    cls: type[BackgroundJob[Any]],
    priority: int | None,
    queue: str | None,
    run_at: datetime | None,
    delay: float | timedelta | None,
) -> dict[str, Any]:
    """The parameters of every enqueue statement, but for the data.

    From here on `describe` knows the settings that `cls` has now. Raises InvalidJobError for what is given and wrong,
    ConfigurationError for what was assigned to the class and is.
    """
    known = cls._workers_type
    if (
        known is None
        or known.priority != cls.priority
        or known.queue != cls.queue
        or known.deduplicated != cls.deduplicated
        or known.name != cls.job_name
    ):
        known = describe_anew(cls)
    if priority is not None or queue is not None or run_at is not None or delay is not None:
        try:
            priority = None if priority is None else check_priority("priority", priority)
            queue = None if queue is None else check_name("queue", queue)
            _check_time(run_at)
            delay = _check_delay(delay, run_at)
        except ConfigurationError as error:
            raise InvalidJobError(f"job {known.name!r}: {error}") from None
    return {
        "job_type": known.name,
        "queue": known.queue if queue is None else queue,
        "priority": known.priority if priority is None else priority,
        "run_at": run_at,
        "delay": delay,
    }


def _check_time(run_at: datetime | None) -> None:
    if run_at is None:
        return
    if not isinstance(run_at, datetime):
        raise ConfigurationError(f"run_at is a {type(run_at).__name__}: use an aware datetime")
    if run_at.utcoffset() is None:
        raise ConfigurationError("run_at has no time zone: use datetime.now(UTC) and the like")


def _check_delay(delay: float | timedelta | None, run_at: datetime | None) -> float | None:
    if delay is None:
        return None
    if run_at is not None:
        raise ConfigurationError("give run_at or delay, not both")
    return seconds("delay", delay, most=MAX_DELAY)


def refuse_base(cls: type[BackgroundJob[Any]]) -> None:
    """Raise InvalidJobError for a class that has no jobs of its own, but is asked to enqueue some."""
    if getattr(cls, "__abstractmethods__", None):
        raise InvalidJobError(
            f"{cls.__qualname__}.enqueue_batch: call it on one class, the jobs' own, such as SendEmail.enqueue_batch(...); "
            "jobs of several classes need one call each"
        )


def encode_all(cls: type[BackgroundJob[Any]], jobs: Iterable[BackgroundJob[Any]]) -> Iterator[str]:
    """The payloads of `jobs`, one by one. Raises InvalidJobError that says which one is wrong."""
    if not isinstance(jobs, list | tuple):
        # what makes them may go on changing an object that it has handed out: each is written as it came
        yield from _each(cls, jobs, 0)
        return
    codec, rest, done = describe(cls).codec, iter(jobs), 0
    while block := list(islice(rest, _BLOCK)):
        alike = all(type(job) is cls for job in block)
        lines = codec.encode_block(block) if alike else None
        yield from _each(cls, block, done) if lines is None else lines
        done += len(block)


def _each(
    cls: type[BackgroundJob[Any]], jobs: Iterable[BackgroundJob[Any]], first: int
) -> Iterator[str]:
    encode = describe(cls).codec.encode
    for index, job in enumerate(jobs, first):
        if type(job) is not cls:
            raise InvalidJobError(
                f"jobs[{index}] is a {type(job).__qualname__}: a batch of {cls.__qualname__} takes exactly that class"
            )
        try:
            text = encode(job)
        except InvalidJobError as error:
            raise InvalidJobError(f"jobs[{index}]: {error}") from None
        yield text
