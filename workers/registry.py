"""Which class runs a job type."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .background_job import BackgroundJob
from .errors import RegistrationError
from .job_type import JobType, describe_anew

__all__ = ["Registry"]


class Registry:
    """The job types that one runner knows, by name."""

    def __init__(self) -> None:
        self._types: dict[str, JobType] = {}

    def register(self, job_class: type[BackgroundJob[Any]]) -> JobType:
        """Add a class; registering it again changes nothing.

        Its settings are those that it has now. Raises RegistrationError if another class has its name, or if it can't be run
        or stored, ConfigurationError if a setting is wrong by now.
        """
        given: object = job_class
        if not (isinstance(given, type) and issubclass(given, BackgroundJob)):
            if isinstance(given, BackgroundJob):
                kind = type(given).__qualname__
                raise RegistrationError(f"a job is no job class: register its class, {kind}")
            raise RegistrationError(f"{given!r} is no job class: derive it from BackgroundJob")
        job_type = describe_anew(job_class)
        known = self._types.setdefault(job_type.name, job_type)
        if known.job_class is not job_class:
            raise RegistrationError(
                f"{_place(job_class)} and {_place(known.job_class)} are both named {job_type.name!r}: "
                "set job_name on one of them"
            )
        return known

    def get(self, name: str) -> JobType | None:
        """Return the job type called `name`, or None."""
        return self._types.get(name)

    def __contains__(self, name: object) -> bool:
        return name in self._types

    def __iter__(self) -> Iterator[JobType]:
        return iter(self._types.values())

    def __len__(self) -> int:
        return len(self._types)


def _place(job_class: type) -> str:
    return f"{job_class.__module__}.{job_class.__qualname__}"
