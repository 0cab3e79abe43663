"""Payload <-> JSON text, and every check that a payload must pass before it is written.

A job is encoded, decoded again with its class's own types, and compared with what came back: what a runner would not get
is refused where it is enqueued. (But for short payloads of plain text, numbers and booleans, which can be nothing else.)
Messages name paths and kinds, never values: a payload may hold secrets.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from operator import attrgetter, eq
from typing import Any, Generic, NoReturn, TypeVar

import msgspec

from . import _payload
from ._comparison import compare_all
from ._payload import Refused
from .errors import InvalidJobError, RegistrationError

__all__ = ["MAX_BYTES", "MAX_DEPTH", "MAX_WRITTEN_OUT", "Codec"]

#: The largest payload, in bytes of UTF-8 JSON.
MAX_BYTES = 1_048_576
#: PostgreSQL writes numbers out, 1e308 with 309 digits: the largest payload as it is fetched. (The migrations say so too.)
MAX_WRITTEN_OUT = 16 * MAX_BYTES
#: Below this no payload can grow to that.
_CANNOT_GROW = MAX_WRITTEN_OUT // 64
#: The deepest nesting of objects and arrays, the payload itself included.
MAX_DEPTH = 100

T = TypeVar("T")


class Codec(Generic[T]):
    """Encodes and decodes the jobs of one class."""

    __slots__ = (
        "_decode",
        "_decode_lines",
        "_encode",
        "_encode_lines",
        "_exact",
        "_fields",
        "_job_type",
        "_plain",
        "_stable",
        "_values",
    )

    def __init__(self, job_class: type[T], job_type: str, *, stable: bool = False) -> None:
        """Prepare for `job_class`, a dataclass whose annotations are resolved.

        `stable`: equal jobs give equal JSON. Raises RegistrationError for a field that can't be stored.
        """
        self._job_type = job_type
        try:
            decoder = msgspec.json.Decoder(job_class, dec_hook=_payload.from_plain)
            kinds = _payload.kinds_of(job_class)
        except Exception as error:
            raise RegistrationError(
                f"{job_class.__qualname__} can't be stored as JSON: {error}"
            ) from error
        for kind in kinds:
            if not _payload.is_storable(kind):
                raise RegistrationError(
                    f"{job_class.__qualname__} has a field of type {_payload.name_of(kind)}, which can't be stored "
                    "as JSON: use a dataclass, a msgspec.Struct, a pydantic model or built-in types"
                )
            if stable and _payload.holds_set(kind):
                raise RegistrationError(
                    f"{job_class.__qualname__} is deduplicated, and its field of type {_payload.name_of(kind)} holds a set, "
                    "which each process writes in another order: use a list or a tuple there, sorted where you make it"
                )
        self._stable = stable
        order = "deterministic" if stable else None
        encoder = msgspec.json.Encoder(enc_hook=_payload.to_plain, order=order)  # type: ignore[arg-type]
        self._encode, self._encode_lines = encoder.encode, encoder.encode_lines
        self._decode: Callable[[str | bytes], T] = decoder.decode
        self._decode_lines: Callable[[bytes], list[T]] = decoder.decode_lines
        self._fields = tuple(field.name for field in dataclasses.fields(job_class))  # type: ignore[arg-type]
        self._values = _getter(self._fields)
        self._exact = _payload.exact_types(job_class, self._fields)
        self._plain: list[tuple[Callable[[T], object], set[type]]] | None = None
        if self._exact is not None:
            columns = zip(self._fields, self._exact, strict=True)
            self._plain = [(attrgetter(name), {kind}) for name, kind in columns]
            if len(self._exact) == 1:  # as `_getter` has it
                self._exact *= 2

    def encode(self, job: T) -> str:
        """Return `job` as JSON text; raise InvalidJobError if it would not come back as it is."""
        try:
            raw = self._encode(job)
        except Exception as error:
            self._refuse(_payload.unencodable(self._encode, job, error))
        values = self._values
        try:
            # 100 bytes can't nest deeper than 100 levels; msgspec escapes control characters only; null is None, or NaN
            if len(raw) > MAX_DEPTH or b"\\u" in raw or b"null" in raw:
                self._look_closer(raw, values(job))
            elif tuple(map(type, values(job))) == self._exact:
                # what is decoded can be nothing else (an integer of thousands of digits can't be decoded at all)
                return raw.decode()
            copy = self._decode(raw)
            if not _equal(given := values(job), stored := values(copy)):
                compare_all(self._fields, given, stored)
        except Exception as error:
            self._refuse(_payload.explain(error))
        # 3 in a float field is 3 in the job's JSON and 3.0 in the copy's
        return (self._encode(copy) if self._stable else raw).decode()

    def _look_closer(self, raw: bytes, values: tuple[object, ...]) -> None:
        """The checks that most payloads can't fail, for the others."""
        size = len(raw)
        if size > MAX_BYTES:
            raise Refused(
                f"its payload is {size:,} bytes of JSON and at most {MAX_BYTES:,} are allowed; "
                "keep large data elsewhere and enqueue a reference to it"
            )
        if b"\\u" in raw or _openings(raw) > MAX_DEPTH:
            _payload.check_json(raw, MAX_DEPTH)
        if size > _CANNOT_GROW:
            _payload.check_written_out(raw, MAX_WRITTEN_OUT)
        if b"null" in raw:
            _payload.check_finite(self._fields, values)

    def encode_block(self, jobs: Sequence[T]) -> list[str] | None:
        """What `encode` returns for each of `jobs`, at half the cost; None: it has to be asked, about each of them.

        All are encoded, and decoded and compared where they have to be, at once. What needs a closer look, or is to be
        refused, gets it there.
        """
        try:
            raw = self._encode_lines(jobs)
            if self._stable or len(raw) > _CANNOT_GROW or b"\\u" in raw or b"null" in raw:
                return None
            lines = raw.decode().split("\n")
            if lines.pop() or len(lines) != len(jobs):
                return None
            if max(map(len, lines), default=0) > MAX_DEPTH:
                if any(
                    _openings(line.encode()) > MAX_DEPTH for line in lines if len(line) > MAX_DEPTH
                ):
                    return None
            elif self._are_plain(jobs):
                return lines
            copies = self._decode_lines(raw)
            values = self._values
            # nothing that is kept: what is made in between would have the garbage collector look at all jobs there are
            alike = len(copies) == len(jobs) and all(
                map(eq, map(values, jobs), map(values, copies))
            )
        except Exception:
            return None
        return lines if alike else None

    def _are_plain(self, jobs: Sequence[T]) -> bool:
        """Whether all values are such that they come back as they are: see `encode`."""
        return self._plain is not None and all(
            set(map(type, map(value, jobs))) == kind for value, kind in self._plain
        )

    def decode(self, text: str | bytes) -> T:
        """Return the job that `text` holds; raise InvalidJobError for anything else, however hostile."""
        try:
            return self._decode(text)
        except Exception as error:
            self._refuse(_payload.explain(error))

    def _refuse(self, refused: Refused) -> NoReturn:
        where = f", field `{refused.path}`" if refused.path else ""
        # the original error may quote the payload, and its traceback would be logged with it
        raise InvalidJobError(f"job {self._job_type!r}{where}: {refused}") from None


def _getter(fields: tuple[str, ...]) -> Callable[[Any], tuple[object, ...]]:
    """A function that returns the values of `fields`, in a tuple; of a single one twice."""
    if not fields:
        return lambda _: ()
    # of one name it makes no tuple
    return attrgetter(*fields) if len(fields) > 1 else attrgetter(*fields, *fields)


def _openings(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{")


def _equal(given: tuple[object, ...], stored: tuple[object, ...]) -> bool:
    try:
        return given == stored
    except Exception:  # a comparison that raises decides nothing: look closer
        return False
