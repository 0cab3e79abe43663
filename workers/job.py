"""The values that travel between producers, engines and the runtime. Frozen, slotted, no I/O."""

from __future__ import annotations

from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any

import msgspec

__all__ = [
    "MAX_PRIORITY",
    "MIN_PRIORITY",
    "ClaimedJob",
    "JobRecord",
    "JobState",
    "NewJob",
    "Priority",
    "in_short",
    "printable",
]

_TRACEBACK = "Traceback (most recent call last):"

#: The range of PostgreSQL's smallint, which the original's `priority` column is.
MIN_PRIORITY, MAX_PRIORITY = -32768, 32767


class Priority(IntEnum):
    """Names for common priorities; any integer from -32768 to 32767 will do. Higher runs first."""

    LOW = -10
    NORMAL = 0
    HIGH = 10
    CRITICAL = 20


class JobState(StrEnum):
    """Where a job stands (scheduled, available, running, then gone, retryable or dead)."""

    SCHEDULED = "scheduled"
    AVAILABLE = "available"
    RUNNING = "running"
    RETRYABLE = "retryable"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    DEAD = "dead"


class _Row(msgspec.Struct, frozen=True):
    """What is shown of a row has no payload in it."""

    def __repr__(self) -> str:
        shown = [f"{name}={value!r}" for name, value in self.__rich_repr__()]
        return f"{type(self).__name__}({', '.join(shown)})"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        return [(name, getattr(self, name)) for name in self.__struct_fields__ if name != "data"]


class NewJob(_Row, frozen=True, gc=False, kw_only=True):
    """A job that is to be written. `data` is checked JSON text; of `run_at` and `delay` at most one is set."""

    job_type: str
    data: str
    queue: str | None = None
    priority: int = 0
    run_at: datetime | None = None
    delay: float | None = None
    deduplicated: bool = False


class ClaimedJob(_Row, frozen=True, gc=False):
    """A row as a claim returns it: what is needed to run it, and to prove the claim when its outcome is written.

    `data` is the stored JSON as text: decoding is the executor's, one job at a time, so that a bad row harms itself alone.
    """

    id: int
    job_type: str
    queue: str
    priority: int
    data: str
    retries: int
    crashes: int
    deduplicated: bool
    token: int


class JobRecord(_Row, frozen=True, kw_only=True):
    """A job as its owner sees it, wherever it stands. `finished_at` and `reason` are set once it is out of the hot table."""

    id: int
    job_type: str
    state: JobState
    queue: str | None
    priority: int
    data: str
    retries: int
    crashes: int
    created_at: datetime
    last_retry: datetime
    run_at: datetime | None = None
    last_error: str | None = None
    reason: str | None = None
    finished_at: datetime | None = None


def in_short(error: str) -> str:
    """One line of a stored error: the words before its traceback where there are any, else the last, what was raised."""
    text = error.strip()
    first, _, rest = text.partition("\n")
    second = rest.partition("\n")[0]
    # a group of exceptions has something before that
    last = text.rpartition("\n")[2]
    if second.endswith(_TRACEBACK) and not first.endswith(_TRACEBACK):
        return f"{first} {last}" if first.endswith(":") else first
    return last


def printable(name: str) -> str:
    """A name that anybody may have written into the table, in one line."""
    return name if name.isprintable() else repr(name)
