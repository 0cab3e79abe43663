"""Exceptions that say what is not to be said, and what stands in for them in logs and events: alike, but for the words."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

__all__ = ["stand_in"]

#: How far causes are followed.
_DEEPEST = 20
#: Flags of a type that was made by a class statement.
_HEAP = 1 << 9
_UNKNOWN = "(its own text can't be had)"

Clean = Callable[[str], str]


def stand_in(error: BaseException, clean: Clean) -> BaseException:
    """An exception of the class of `error`, or one that looks like it, with its traceback and its causes, in clean words.

    What else `error` carries is left out: its attributes may hold anything. Raises nothing.
    """
    try:
        return _stand_in(error, clean, {}, _DEEPEST)
    except BaseException:
        return RuntimeError(f"{type(error).__name__}: {_UNKNOWN}")


def _stand_in(
    error: BaseException, clean: Clean, made: dict[int, BaseException], depth: int
) -> BaseException:
    if (known := made.get(id(error))) is not None:
        return known
    text = clean(_text_of(error))
    inner = _slot(error, "exceptions") if issubclass(type(error), BaseExceptionGroup) else ()
    if inner and depth:
        parts = [_stand_in(part, clean, made, depth - 1) for part in inner]
        copy = _group(error, clean(_slot(error, "message")), parts)
    else:
        copy = _new(_likeness(type(error)), text)  # type: ignore[arg-type]  # a class is hashable
    made[id(error)] = copy
    # past whatever the class makes of them
    for name in ("__cause__", "__context__"):
        if depth and (link := _slot(error, name)) is not None:
            _set(copy, name, _stand_in(link, clean, made, depth - 1))
    _set(copy, "__suppress_context__", _slot(error, "__suppress_context__"))
    _set(copy, "__traceback__", _slot(error, "__traceback__"))
    for note in _notes_of(error):
        BaseException.add_note(copy, clean(note))
    return copy


def _new(kind: type[BaseException], *args: object) -> BaseException:
    """Made, but not initialised: the class's own __init__ asks for who knows what."""
    builtin: Any = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP)
    made: BaseException = builtin.__new__(kind, *args)
    return made


def _group(error: BaseException, text: str, parts: list[BaseException]) -> BaseException:
    try:
        return _new(_likeness(type(error)), text, parts)  # type: ignore[arg-type]  # a class is hashable
    except TypeError:  # one of the parts is no longer what this group may hold
        return BaseExceptionGroup(text, parts)


@lru_cache(maxsize=128)
def _likeness(kind: type[BaseException]) -> type[BaseException]:
    """A class that is shown as `kind`, and derived from it where that takes no notice of its subclasses."""
    group = issubclass(kind, BaseExceptionGroup)
    body: dict[str, Any] = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    if not group:
        body |= {"__str__": _first_argument, "__repr__": _represent}
    own = [base for base in kind.__mro__ if base.__flags__ & _HEAP]
    noticed = type(kind) is not type or any("__init_subclass__" in vars(base) for base in own)
    base = kind if not noticed else BaseExceptionGroup if group else Exception
    return type(kind.__name__, (base,), body)


def _first_argument(error: BaseException) -> str:
    return str(_slot(error, "args")[0])


def _represent(error: BaseException) -> str:
    return f"{type(error).__name__}({_first_argument(error)!r})"


def _slot(error: BaseException, name: str) -> Any:
    holder = BaseExceptionGroup if name in ("exceptions", "message") else BaseException
    return vars(holder)[name].__get__(error)


def _set(error: BaseException, name: str, value: object) -> None:
    vars(BaseException)[name].__set__(error, value)


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException:
        return _UNKNOWN


def _notes_of(error: BaseException) -> list[str]:
    try:
        return [str(note) for note in getattr(error, "__notes__", ())]
    except BaseException:
        return []
