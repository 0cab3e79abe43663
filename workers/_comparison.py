"""Whether a payload came back from its own JSON as what it was."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, time
from decimal import Decimal
from typing import Any

from ._payload import SEQUENCES, SETS, Refused, fields_of, type_name

__all__ = ["compare_all"]

#: Kinds whose == says no for values that are the same: NaN, and a time inside a fold.
_ODD_EQUALITY = (datetime, time, Decimal)
#: Elements of sets that are not equal are compared each with each: a second's work at most.
_MOST_LOOKS = 1_000_000
_OFFSET = "a time whose offset from UTC has seconds, which JSON can't hold: use astimezone(UTC)"


def compare_all(
    fields: tuple[str, ...], given: tuple[object, ...], stored: tuple[object, ...]
) -> None:
    """Refuse the first field that came back from JSON as something else."""
    for path, value, copy in zip(fields, given, stored, strict=False):
        _compare(value, copy, path)


def _compare(given: object, stored: object, path: str) -> None:
    """Refuse a value that came back from JSON as something else."""
    kind = type(given)
    if isinstance(given, dict) and isinstance(stored, dict):
        for key, item in given.items():
            if key not in stored:
                raise Refused(
                    f"a key of type `{type_name(key)}` would come back as text: use str keys", path
                )
            _compare(item, stored[key], f"{path}[...]")
    elif isinstance(given, SEQUENCES) and isinstance(stored, SEQUENCES):
        if isinstance(given, SETS) or isinstance(stored, SETS):
            _compare_unordered(given, stored, path)
            return
        for index, (item, copy) in enumerate(zip(given, stored, strict=False)):
            _compare(item, copy, f"{path}[{index}]")
    elif kind is type(stored) and (names := fields_of(given)) is not None:
        for name in names:
            _compare(getattr(given, name, None), getattr(stored, name, None), f"{path}.{name}")
    elif kind is type(stored) and isinstance(given, datetime | time) and _is_moved(given, stored):
        raise Refused(_OFFSET, path)
    elif not _survived(given, stored):
        change = "with another value" if kind is type(stored) else f"as `{type_name(stored)}`"
        raise Refused(
            f"`{type_name(given)}` would come back {change}: give the field a value of its own type",
            path,
        )


def _compare_unordered(given: Collection[object], stored: Collection[object], path: str) -> None:
    """Refuse an element that none of the stored ones is. Where they are not equal, each has to be looked at."""
    known = stored if isinstance(stored, SETS) else ()
    others = [item for item in given if not _is_in(item, known)]
    if len(others) * len(stored) > _MOST_LOOKS:
        raise Refused("a set with too many elements that can't be compared: use a list", path)
    for item in others:
        if not any(_is_kept(item, copy) for copy in stored):
            raise Refused(
                f"`{type_name(item)}` in a set would come back as something else: "
                "give the field values of its own type",
                path,
            )


def _is_in(item: object, known: Collection[object]) -> bool:
    try:
        return item in known
    except Exception:  # it has no hash, or a comparison raises
        return False


def _is_kept(given: object, stored: object) -> bool:
    try:
        _compare(given, stored, "")
    except Refused:
        return False
    return True


def _is_moved(given: datetime | time, stored: Any) -> bool:
    """Whether it is another time now. By its parts: inside a fold it is not even equal to itself."""
    moved = given.replace(tzinfo=None) != stored.replace(tzinfo=None)
    return bool(moved or given.utcoffset() != stored.utcoffset())


def _survived(given: object, stored: object) -> bool:
    odd = isinstance(given, _ODD_EQUALITY) or type(given).__eq__ is object.__eq__
    return bool((odd and type(given) is type(stored)) or given == stored)
