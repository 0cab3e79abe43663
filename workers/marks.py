"""The mark of fields whose values are hidden, and what is found out from annotations about it."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from typing import Annotated, TypeAlias, TypeVar

from .errors import RegistrationError

__all__ = ["Secret", "key_names", "secret_fields"]

T = TypeVar("T")


class _Mark:
    def __repr__(self) -> str:
        return "Secret"


_MARK = _Mark()

#: `token: Secret[str]` is a str to type checkers and to the job, and *** wherever the job is shown.
Secret: TypeAlias = Annotated[T, _MARK]


def secret_fields(job_class: type) -> frozenset[str]:
    """The fields of `job_class`, a dataclass whose annotations are resolved, with a mark in them, at any depth."""
    fields = dataclasses.fields(job_class)
    return frozenset(
        field.name
        for field in fields
        if _is_marked(field.type, f"{job_class.__qualname__}.{field.name}")
    )


def key_names(job_class: type) -> frozenset[str]:
    """What the fields are called of the dataclasses, models and the like in the fields of `job_class`, at any depth."""
    names: set[str] = set()
    for field in dataclasses.fields(job_class):
        for item in _reachable(field.type):
            if isinstance(item, type) and item.__module__ != "builtins":
                names |= _names(item)
    return frozenset(names)


def _is_marked(annotation: object, place: str) -> bool:
    """Raises RegistrationError for a mark without a type, which is no type to decode."""
    for item in _reachable(annotation):
        if item is Secret:
            name = place.rpartition(".")[2]
            raise RegistrationError(
                f"{place}: Secret needs a type: write `{name}: Secret[str]` and give the plain value"
            )
        if item is _MARK or any(part is Secret for part in getattr(item, "__metadata__", ())):
            return True
    return False


def _reachable(annotation: object) -> Iterator[object]:
    """All that `annotation` is made of."""
    open_ = [annotation]
    # kept alive: another one would get the address of one that is gone, and be taken for it
    seen: dict[int, object] = {}
    while open_:
        item = open_.pop()
        if id(item) in seen:
            continue
        yield item
        seen[id(item)] = item
        open_ += getattr(item, "__metadata__", ())
        open_ += typing.get_args(item)
        named = [getattr(item, name, None) for name in ("__value__", "__supertype__")]
        open_ += [inner for inner in (typing.get_origin(item), *named) if inner is not None]
        if isinstance(item, type) and item.__module__ != "builtins":
            open_ += _annotations(item)


def _annotations(kind: type) -> list[object]:
    """Of a dataclass, a model and the like."""
    try:
        return list(typing.get_type_hints(kind, include_extras=True).values())
    except Exception:  # what can't be looked into is not shown
        return [_MARK]


def _names(kind: type) -> set[str]:
    """Of its fields, in Python and in JSON."""
    try:
        names = {*typing.get_type_hints(kind), *getattr(kind, "__struct_encode_fields__", ())}
        for field in getattr(kind, "model_fields", {}).values():
            names |= {field.serialization_alias, field.alias} - {None}
    except Exception:  # then they are hidden, too
        return set()
    return names
