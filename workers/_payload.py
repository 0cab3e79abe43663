"""The slow half of the codec: looking into a payload to say what is wrong with it, and where.

Pydantic is recognised by what its models carry, so that it need not be imported, or installed.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from typing import Any

import msgspec

__all__ = [
    "SEQUENCES",
    "SETS",
    "Refused",
    "check_finite",
    "check_json",
    "exact_types",
    "explain",
    "fields_of",
    "from_plain",
    "holds_set",
    "is_storable",
    "kinds_of",
    "name_of",
    "to_plain",
    "type_name",
    "unencodable",
]

SETS = (set, frozenset)
SEQUENCES = (list, tuple, *SETS)
#: Fields whose values need no comparison, and the type that these must have.
_PLAIN: tuple[tuple[msgspec.inspect.Type, type], ...] = (
    (msgspec.inspect.StrType(), str),
    (msgspec.inspect.IntType(), int),
    (msgspec.inspect.FloatType(), float),
    (msgspec.inspect.BoolType(), bool),
)
_NO_FLOATS = frozenset({str, int, bool, bytes})
_DEEP = "nested too deeply, or in a circle"
_SURROGATE = (
    "text with a lone surrogate, which PostgreSQL can't store: replace it before enqueueing"
)
_NUL = "text with a NUL character, which PostgreSQL can't store: remove it before enqueueing"
_NON_FINITE = "NaN or Infinity, which JSON does not have: use None or a string"
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')
_EXPONENT = re.compile(rb"[eE]([+-]?\d+)")
_WITH_PATH = re.compile(r"(.*?)(?: - at (?:the key in )?`\$\.?([^`]*)`)?", re.DOTALL)


class Refused(Exception):  # noqa: N818 - becomes an InvalidJobError, which knows the job type
    """What is wrong with a payload, at `path`."""

    def __init__(self, message: str, path: str = "") -> None:
        super().__init__(message)
        self.path = path


# Pydantic ---------------------------------------------------------------------------------------


def is_pydantic(kind: type) -> bool:
    """Whether `kind` is a pydantic model."""
    return hasattr(kind, "__pydantic_serializer__") and hasattr(kind, "model_validate_json")


def to_plain(value: Any) -> msgspec.Raw:
    """The JSON of a pydantic model."""
    if not is_pydantic(type(value)):
        raise TypeError
    return msgspec.Raw(value.model_dump_json(by_alias=True, round_trip=True).encode())


def holds_set(kind: msgspec.inspect.Type) -> bool:
    """Whether it is a pydantic model with a set in it, at any depth: each process writes that in an order of its own."""
    open_: list[object] = [getattr(getattr(kind, "cls", None), "__pydantic_core_schema__", None)]
    seen: set[int] = set()
    while open_:
        part = open_.pop()
        if isinstance(part, dict) and id(part) not in seen:
            seen.add(id(part))
            if part.get("type") in ("set", "frozenset"):
                return True
            open_ += part.values()
        elif isinstance(part, list | tuple):
            open_ += part
    return False


def from_plain(kind: type, value: object) -> Any:
    """A pydantic model of `kind`; from JSON, as its strict mode takes a datetime from text only there."""
    return kind.model_validate_json(msgspec.json.encode(value))  # type: ignore[attr-defined]


# Types ------------------------------------------------------------------------------------------


def kinds_of(job_class: type) -> list[msgspec.inspect.Type]:
    """Every type in the fields of `job_class`, at any depth."""
    found: dict[int, msgspec.inspect.Type] = {}
    open_: list[object] = [msgspec.inspect.type_info(job_class)]
    while open_:
        item = open_.pop()
        if isinstance(item, tuple):
            open_ += item
        elif isinstance(item, msgspec.inspect.Field):
            open_.append(item.type)
        elif isinstance(item, msgspec.inspect.Type) and id(item) not in found:
            found[id(item)] = item
            open_ += [getattr(item, name) for name in item.__struct_fields__]
    return list(found.values())


def is_storable(kind: msgspec.inspect.Type) -> bool:
    """Whether a payload may hold it. Raw may not: nothing would look inside."""
    if isinstance(kind, msgspec.inspect.CustomType):
        return is_pydantic(kind.cls)
    return not isinstance(kind, msgspec.inspect.RawType)


def exact_types(job_class: type, fields: tuple[str, ...]) -> tuple[type, ...] | None:
    """The types of `fields`, where values of exactly these come back as they are; else None.

    Text, numbers and booleans without constraints, and nothing that the class does when it is decoded.
    """
    found = msgspec.inspect.type_info(job_class)
    if not isinstance(found, msgspec.inspect.DataclassType) or hasattr(job_class, "__post_init__"):
        return None
    kinds = {field.name: field.type for field in found.fields}
    exact = tuple(kind for name in fields for plain, kind in _PLAIN if kinds.get(name) == plain)
    # a descriptor may make something else of what it is given
    own = any(hasattr(type(getattr(job_class, name, None)), "__set__") for name in fields)
    return exact if len(exact) == len(fields) == len(kinds) and not own else None


def name_of(kind: msgspec.inspect.Type) -> str:
    """What users call a type."""
    return str(getattr(getattr(kind, "cls", None), "__qualname__", "msgspec.Raw"))


def fields_of(value: object) -> tuple[str, ...] | None:
    """The fields of a structured value, or None."""
    kind = type(value)
    if dataclasses.is_dataclass(kind):
        return tuple(field.name for field in dataclasses.fields(kind))
    if issubclass(kind, msgspec.Struct):
        return kind.__struct_fields__
    if is_pydantic(kind):
        return (*kind.model_fields, *(value.__pydantic_extra__ or ()))  # type: ignore[attr-defined]
    if hasattr(kind, "__attrs_attrs__"):
        return tuple(field.name for field in kind.__attrs_attrs__)
    return None


def _parts(value: object) -> Iterator[tuple[str, object]]:
    """What `value` is made of, each with its step of the path."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield "[...]", key
            yield "[...]", item
    elif isinstance(value, SEQUENCES):
        for index, item in enumerate(value):
            yield f"[{index}]", item
    elif (names := fields_of(value)) is not None:
        for name in names:
            yield f".{name}", getattr(value, name, None)


# Checks -----------------------------------------------------------------------------------------


def check_json(raw: bytes, max_depth: int) -> None:
    """Refuse what PostgreSQL's jsonb does not take, and more than `max_depth` levels."""
    open_: list[tuple[object, int, str]] = [(msgspec.json.decode(raw), 1, "")]
    while open_:
        value, level, path = open_.pop()
        if isinstance(value, str):
            if "\0" in value:
                raise Refused(_NUL, path)
        elif isinstance(value, dict | list):
            if level > max_depth:
                raise Refused(
                    f"more than {max_depth} levels deep: make it flatter", path.partition("[")[0]
                )
            if level == 1 and isinstance(value, dict):
                open_ += [(part, 2, name) for name, part in value.items()]
            else:
                open_ += [(part, level + 1, path + step) for step, part in _parts(value)]


def check_written_out(raw: bytes, most: int) -> None:
    """Refuse JSON that grows beyond `most` bytes where its numbers are written without exponents."""
    bare = _STRING.sub(b"", raw)
    if len(raw) + sum(abs(int(exponent)) for exponent in _EXPONENT.findall(bare)) > most:
        raise Refused(
            f"its numbers, written out without exponents, take more than {most:,} bytes: scale them, or use text"
        )


def check_finite(fields: tuple[str, ...], values: tuple[object, ...]) -> None:
    """Refuse NaN and Infinity, which msgspec writes as null."""
    for path, value in zip(fields, values, strict=False):
        if value is not None and type(value) not in _NO_FLOATS:
            _check_finite(value, path)


def _check_finite(value: object, path: str) -> None:
    if isinstance(value, float):
        if not math.isfinite(value):
            raise Refused(_NON_FINITE, path)
    elif value is not None and type(value) not in _NO_FLOATS:
        for step, part in _parts(value):
            _check_finite(part, path + step)


# Errors -----------------------------------------------------------------------------------------


def unencodable(
    encode: Callable[[Any], bytes], value: object, error: Exception, path: str = ""
) -> Refused:
    """Find the part of `value` that `encode` failed on."""
    if len(path) < 200 and not isinstance(error, RecursionError):  # a circle has no end to find
        for step, part in _parts(value):
            try:
                encode(part)
            except Exception as inner:
                return unencodable(encode, part, inner, path + step)
    where = path.lstrip(".")
    if isinstance(error, RecursionError):
        return Refused(_DEEP, where)
    if isinstance(error, UnicodeEncodeError):
        return Refused(_SURROGATE, where)
    if isinstance(value, int):
        return Refused("an integer with too many digits: use text", where)
    if isinstance(value, dict):
        return Refused("a dict with keys that can't be JSON keys: use str keys", where)
    if isinstance(value, set | frozenset):
        return Refused("a set of different kinds has no order to compare by: use a list", where)
    return Refused(f"`{type_name(value)}` can't be stored as JSON: use a type that can", where)


def explain(error: Exception) -> Refused:
    """What `error`, raised while decoding, says about the payload; without its values."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, RecursionError):
        return Refused(_DEEP)
    if isinstance(error, UnicodeError):
        return Refused(_SURROGATE)
    if not isinstance(error, msgspec.MsgspecError):
        return Refused(f"the job's own checks raised {type(error).__name__}")
    match = _WITH_PATH.fullmatch(str(error))
    message, path = match.groups() if match else (str(error), "")
    if error.__cause__ is not None:
        return Refused(_refused_by(error.__cause__), path or "")
    # these go on with the value
    message = re.sub(r"(Invalid (?:enum )?value|unknown field).*", r"\1", message, flags=re.DOTALL)
    if not isinstance(error, msgspec.ValidationError):
        message = "not JSON"
    return Refused(message[:1].lower() + message[1:200], path or "")


def _refused_by(cause: BaseException) -> str:
    """What a pydantic model, or a __post_init__, said: places and kinds."""
    errors = getattr(cause, "errors", None)
    if not callable(errors):
        return f"its own checks raised {type(cause).__name__}"
    found = errors(include_url=False, include_context=False, include_input=False)
    places = (f"{'.'.join(map(str, item['loc']))} ({item['type']})" for item in found[:3])
    return f"not a valid {getattr(cause, 'title', 'model')}: {', '.join(places)}"[:200]


def type_name(value: object) -> str:
    return type(value).__qualname__
