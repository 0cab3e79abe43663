"""What a failed enqueue statement may say where payloads hold secrets: drivers quote the row, or the parameters."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from .errors import RegistrationError
from .hiding import without_passwords
from .job_type import describe

if TYPE_CHECKING:
    from .background_job import BackgroundJob

__all__ = ["in_short"]

#: Whose exceptions are cut; others in a chain are the caller's.
_DRIVERS = frozenset({"psycopg", "psycopg2", "asyncpg", "sqlalchemy", "django", "workers"})
#: An exception that led to this one, or that it was made from: SQLAlchemy's has the driver's.
_LINKS = ("__cause__", "__context__", "orig")

Run = Callable[..., Any]


def in_short(cls: type[BackgroundJob[Any]], run: Run, is_async: bool) -> Run:
    """`run`, which enqueues jobs of `cls`: where these have marked fields, with the first lines of its errors only."""
    try:
        if not (cls._workers_type or describe(cls)).secrets:
            return run
    except RegistrationError:  # nothing of it can be enqueued
        return run
    return _in_short_async(run) if is_async else _in_short(run)


def _in_short(run: Run) -> Run:
    def run_in_short(*args: Any) -> Any:
        try:
            return run(*args)
        except Exception as error:
            _cut(error)
            raise

    return run_in_short


def _in_short_async(run: Run) -> Run:
    async def run_in_short(*args: Any) -> Any:
        try:
            return await run(*args)
        except Exception as error:
            _cut(error)
            raise

    return run_in_short


def _cut(error: BaseException) -> None:
    """Leave the first line of `error` and of what led to it: DETAIL quotes the row, CONTEXT a line of COPY."""
    open_, seen = [error], set()
    while open_:
        item = open_.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if type(item).__module__.partition(".")[0] in _DRIVERS:
            with contextlib.suppress(Exception):  # what can't be changed stays
                item.args = tuple(
                    without_passwords(part.partition("\n")[0]) if isinstance(part, str) else part
                    for part in item.args
                )
            _quieten(item)
        links = [getattr(item, name, None) for name in _LINKS]
        open_ += [link for link in links if isinstance(link, BaseException)]


def _quieten(error: Any) -> None:
    """What SQLAlchemy and asyncpg add when an error of theirs is shown."""
    if isinstance(getattr(error, "hide_parameters", None), bool):
        error.hide_parameters = True
    if isinstance(getattr(error, "detail", None), str):
        error.detail = None
