"""What is known of a job class, made when it is first used: its settings, ready to be acted on, and its codec."""

from __future__ import annotations

import dataclasses
import inspect
from threading import RLock
from typing import TYPE_CHECKING, Any

import msgspec

from ._annotations import resolve
from .codec import Codec
from .config import seconds
from .declaration import check_settings, payload_fields
from .errors import RegistrationError
from .hiding import secret_fields
from .lifecycle import JobPolicy

if TYPE_CHECKING:
    from .background_job import BackgroundJob

__all__ = ["JobType", "describe", "describe_anew"]

_lock = RLock()


class JobType(msgspec.Struct, frozen=True, kw_only=True):
    """A job class, ready to be written and run. `timeout` is in seconds; `is_async`: `run` is an `async def`; `secrets`: the
    fields that are shown nowhere."""

    name: str
    job_class: type[BackgroundJob[Any]]
    codec: Codec[BackgroundJob[Any]]
    policy: JobPolicy
    queue: str
    priority: int
    deduplicated: bool
    is_async: bool
    timeout: float | None
    transactional: bool
    secrets: frozenset[str]


def describe(cls: type[BackgroundJob[Any]]) -> JobType:
    """Return what is known of `cls`, with its settings as they were when last looked at.

    Raises RegistrationError if its annotations can't be resolved or stored, ConfigurationError if a setting is wrong.
    """
    if (known := cls._workers_type) is None:
        with _lock:  # a second thread does it once more, to the same end
            cls._workers_type = known = _describe(cls)
    return known


def describe_anew(cls: type[BackgroundJob[Any]]) -> JobType:
    """The same, with its settings as they are now."""
    with _lock:
        known = describe(cls)
        anew = msgspec.structs.replace(known, **_settings(cls))
        if (anew.name, anew.deduplicated) != (known.name, known.deduplicated):
            anew = msgspec.structs.replace(anew, codec=_codec(cls))
        cls._workers_type = anew
    return anew


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
    settings = _settings(cls)
    return JobType(job_class=cls, codec=_codec(cls), secrets=secret_fields(cls), **settings)


def _settings(cls: type[BackgroundJob[Any]]) -> dict[str, Any]:
    """What may be assigned after the class statement, as in tests: checked once more."""
    return {
        "policy": check_settings(cls),
        "name": cls.job_name,
        "queue": cls.queue,
        "priority": int(cls.priority),
        "deduplicated": cls.deduplicated,
        "is_async": inspect.iscoroutinefunction(cls.run),
        "timeout": None if cls.timeout is None else seconds("timeout", cls.timeout),
        "transactional": cls.transactional,
    }


def _codec(cls: type[BackgroundJob[Any]]) -> Codec[BackgroundJob[Any]]:
    try:
        return Codec(cls, cls.job_name, stable=cls.deduplicated)
    except RegistrationError as error:
        raise RegistrationError(f"{_culprit(cls)}{error}") from error


def _culprit(cls: type[BackgroundJob[Any]]) -> str:
    """The field without which `cls` could be stored, as the beginning of a message."""
    for field in payload_fields(cls):
        alone = dataclasses.make_dataclass(cls.__name__, [(field.name, field.type)])
        try:
            Codec(alone, cls.job_name)
        except RegistrationError:
            return f"{cls.__qualname__}.{field.name}: "
    return ""


def _repair_fields(cls: type[BackgroundJob[Any]]) -> None:
    """Give back the default factories that a second dataclass decorator, the user's, could not see."""
    for field in payload_fields(cls):
        first = cls._workers_fields.get(field.name)
        if first is not None and field.default is field.default_factory is dataclasses.MISSING:
            field.default_factory = first.default_factory
