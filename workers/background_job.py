"""The class that users derive their jobs from: payload as fields, settings as class attributes, `run` as the work."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Coroutine, Iterable
from datetime import datetime, timedelta
from types import FrameType
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    Self,
    dataclass_transform,
    overload,
)

from . import connections, telemetry
from ._annotations import enclosing_frames
from ._enqueueing import MAX_DELAY, encode_all, parameters, refuse_base
from .backoff import Exponential
from .connections import (
    ENQUEUE,
    ENQUEUE_AT,
    ENQUEUE_BATCH,
    ENQUEUE_COPY,
    ENQUEUE_DEDUPLICATED,
    AsyncConnectionLike,
    SyncConnectionLike,
    all_ids,
    first_id,
    no_ids,
)
from .declaration import (
    ArchivePolicy,
    BackoffPolicy,
    check_body,
    check_settings,
    refuse_clashes,
    take_name,
)
from .errors import RegistrationError
from .hiding import shown
from .job_type import JobType, describe
from .lifecycle import JobPolicy

if TYPE_CHECKING:
    # the default is for type checkers only: Python 3.11 and 3.12 have none at run time
    from typing_extensions import TypeVar

    ContextT = TypeVar("ContextT", contravariant=True, default=Any)
else:
    from typing import TypeVar

    ContextT = TypeVar("ContextT", contravariant=True)

__all__ = ["MAX_DELAY", "BackgroundJob"]


@dataclass_transform(kw_only_default=True, field_specifiers=(dataclasses.field,))
class BackgroundJob(Generic[ContextT]):
    """A job type. Derive from it, annotate the payload's fields, define `run`.

    The class becomes a dataclass with keyword-only fields. Settings are plain class attributes, inherited, never payload;
    they are checked when the class is defined (ConfigurationError). One that is assigned later, to the class or a base,
    counts for what is enqueued and where the class is registered from then on, and is checked there.
    """

    #: What rows of this type are called; default: from the class name (SendEmailJob -> "send_email").
    job_name: ClassVar[str] = ""
    #: The queue that `enqueue` writes to unless told otherwise.
    queue: ClassVar[str] = "default"
    #: A smallint, or a Priority; higher runs first.
    priority: ClassVar[int] = 0
    #: True: not enqueued while an identical job (type, payload, priority) waits.
    deduplicated: ClassVar[bool] = False
    #: Attempts until a failing job is dead.
    max_attempts: ClassVar[int] = 25
    #: Deaths of its process until a job is dead.
    max_crashes: ClassVar[int] = 5
    #: The wait between attempts: a strategy, a function of the attempts made, or seconds.
    backoff: ClassVar[BackoffPolicy] = Exponential()
    #: Seconds, or a timedelta, that one attempt may take; None: as long as it likes.
    timeout: ClassVar[float | timedelta | None] = None
    #: True: runs in a transaction that its completion joins.
    transactional: ClassVar[bool] = False
    #: Keep completed jobs: False, True, or a static method that is asked with the ClaimedJob.
    archive: ClassVar[ArchivePolicy] = False

    _workers_named: ClassVar[bool] = False
    _workers_fields: ClassVar[dict[str, Any]]
    _workers_frames: ClassVar[tuple[FrameType, ...]] = ()
    _workers_type: ClassVar[JobType | None] = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.run is BackgroundJob.run:
            # object.__new__ refuses such a class without the help of a metaclass
            cls.__abstractmethods__ = frozenset({"run"})  # type: ignore[attr-defined]
        if "__dataclass_fields__" not in vars(cls):  # a slots=True decorator makes the class twice
            check_body(cls)
            cls._workers_named = take_name(cls)
            if "__repr__" not in vars(
                cls
            ):  # no dataclass decorator puts its own in the place of what is there
                cls.__repr__ = BackgroundJob.__repr__  # type: ignore[method-assign]
            dataclasses.dataclass(kw_only=True)(cls)
            cls._workers_fields = vars(cls)["__dataclass_fields__"]
            cls._workers_frames = enclosing_frames(cls)
        refuse_clashes(cls)
        check_settings(cls)
        cls._workers_type = None

    @abstractmethod
    def run(self, ctx: ContextT, /) -> object:
        """Do the work; `async def`, or `def` for a thread.

        An awaitable that `def run` returns is awaited; of a transactional job it is an error.
        """

    def __repr__(self) -> str:
        try:
            secrets = describe(type(self)).secrets
        except RegistrationError:  # so it is not known which ones are
            secrets = None
        return shown(self, secrets)

    def __sentry_repr__(self) -> str:
        """What Sentry shows of a job among local variables: payloads stay here."""
        return f"<{type(self).__qualname__}: fields not shown>"

    @classmethod
    def policy(cls) -> JobPolicy:
        """Return what this class declares about retries, crashes and archiving."""
        return check_settings(cls)

    @overload
    def enqueue(
        self,
        conn: SyncConnectionLike,
        *,
        priority: int | None = None,
        queue: str | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
    ) -> int | None: ...

    @overload
    def enqueue(
        self,
        conn: AsyncConnectionLike,
        *,
        priority: int | None = None,
        queue: str | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
    ) -> Coroutine[Any, Any, int | None]: ...

    def enqueue(
        self,
        conn: Any,
        *,
        priority: int | None = None,
        queue: str | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
    ) -> Any:
        """Write the job in `conn`'s transaction; return its id, None where an identical deduplicated job waits.

        A coroutine on an asynchronous connection: await it. `run_at` (aware) or `delay` (seconds or timedelta) makes it
        wait. Raises, before anything is sent, InvalidJobError, UnsupportedConnectionError, RegistrationError for a class
        whose fields can't be stored, and ConfigurationError for one with a setting that was assigned later and is wrong.
        """
        try:
            cls = type(self)
            given = parameters(cls, priority, queue, run_at, delay)
            data = (cls._workers_type or describe(cls)).codec.encode(self)
            if cls.deduplicated:
                given["data"] = [data]
                return connections.run(cls, conn, ENQUEUE_DEDUPLICATED, given, first_id)
            given["data"] = data
            if run_at is None and delay is None:
                return connections.run(cls, conn, ENQUEUE, given, first_id)
            return connections.run(cls, conn, ENQUEUE_AT, given, first_id)
        except BaseException:
            telemetry.enqueue_failed()
            raise

    @overload
    @classmethod
    def enqueue_batch(
        cls,
        conn: SyncConnectionLike,
        jobs: Iterable[Self],
        *,
        priority: int | None = None,
        queue: str | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
        return_ids: Literal[True] = True,
    ) -> list[int | None]: ...

    @overload
    @classmethod
    def enqueue_batch(
        cls,
        conn: SyncConnectionLike,
        jobs: Iterable[Self],
        *,
        priority: int | None = None,
        queue: str | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
        return_ids: Literal[False],
    ) -> None: ...

    @overload
    @classmethod
    def enqueue_batch(
        cls,
        conn: AsyncConnectionLike,
        jobs: Iterable[Self],
        *,
        priority: int | None = None,
        queue: str | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
        return_ids: Literal[True] = True,
    ) -> Coroutine[Any, Any, list[int | None]]: ...

    @overload
    @classmethod
    def enqueue_batch(
        cls,
        conn: AsyncConnectionLike,
        jobs: Iterable[Self],
        *,
        priority: int | None = None,
        queue: str | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
        return_ids: Literal[False],
    ) -> Coroutine[Any, Any, None]: ...

    @classmethod
    def enqueue_batch(
        cls,
        conn: Any,
        jobs: Iterable[Self],
        *,
        priority: int | None = None,
        queue: str | None = None,
        run_at: datetime | None = None,
        delay: float | timedelta | None = None,
        return_ids: bool = True,
    ) -> Any:
        """Write all `jobs`, of exactly this class, or none, in one round trip; return their ids in order.

        The keywords and errors are those of `enqueue`. `return_ids=False` is for bulk loads, and returns None: on psycopg
        connections (not in pipeline mode) ordinary jobs are streamed by COPY, so that `jobs` may be a generator of millions.
        Deduplicated ones, and other connections, take them all at once.
        """
        try:
            refuse_base(cls)
            given = parameters(cls, priority, queue, run_at, delay)
            payloads, shape = encode_all(cls, jobs), all_ids if return_ids else no_ids
            if not return_ids and not cls.deduplicated:
                return connections.run(cls, conn, ENQUEUE_COPY, given | {"data": payloads}, shape)
            if not (data := list(payloads)):
                return connections.nothing(cls, conn, shape)
            query = ENQUEUE_DEDUPLICATED if cls.deduplicated else ENQUEUE_BATCH
            return connections.run(cls, conn, query, given | {"data": data}, shape)
        except BaseException:
            telemetry.enqueue_failed()
            raise


# A frozen dataclass can't derive from this one: a decorator that asks for it is refused where it stands, by dataclasses.
dataclasses.dataclass(kw_only=True)(BackgroundJob)  # type: ignore[type-abstract]  # it takes any class
BackgroundJob.__abstractmethods__ = frozenset({"run"})  # type: ignore[attr-defined]
