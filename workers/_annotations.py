"""Resolve the annotations of job classes late, so that they may name what is defined after them, and locals.

A class defined in a function keeps that function's frame until its annotations are resolved: the names it uses are found
nowhere else.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections import ChainMap
from collections.abc import Callable
from types import FrameType, SimpleNamespace
from typing import Any, ClassVar

from .errors import RegistrationError

__all__ = ["enclosing_frames", "own_annotations", "resolve", "signature"]

# From 3.14 on annotations are evaluated when they are asked for, and may name what is not there (yet).
if sys.version_info >= (3, 14):
    from annotationlib import Format, get_annotations

    def own_annotations(cls: type) -> dict[str, Any]:
        return get_annotations(cls, format=Format.FORWARDREF)

    def signature(function: Callable[..., Any]) -> inspect.Signature:
        return inspect.signature(function, annotation_format=Format.FORWARDREF)

else:

    def own_annotations(cls: type) -> dict[str, Any]:
        return inspect.get_annotations(cls)

    def signature(function: Callable[..., Any]) -> inspect.Signature:
        return inspect.signature(function)


def enclosing_frames(cls: type) -> tuple[FrameType, ...]:
    """The running functions that `cls` is being defined in, innermost first; none if it needs none."""
    scope = cls.__qualname__.rpartition(".<locals>.")[0]
    if all(isinstance(value, type) for value in own_annotations(cls).values()):
        return ()
    frames = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and scope:
        if frame.f_code.co_qualname == scope and frame.f_globals.get("__name__") == cls.__module__:
            frames.append(frame)
            scope = scope.rpartition(".<locals>.")[0]
        frame = frame.f_back
    return tuple(frames)


def resolve(cls: type, frames: tuple[FrameType, ...]) -> None:
    """Put resolved types where msgspec and dataclasses read the annotations of `cls`, its own fields only.

    Raises RegistrationError that names the class, the field and the name that is not defined.
    """
    annotations = own_annotations(cls)
    if all(isinstance(value, type) for value in annotations.values()):
        return
    fields = {field.name: field for field in dataclasses.fields(cls)}
    module = vars(sys.modules[cls.__module__]) if cls.__module__ in sys.modules else {}
    parameters = {item.__name__: item for item in getattr(cls, "__type_params__", ())}
    # the class body comes last: a default named like a type would hide it
    names = ChainMap(*(frame.f_locals for frame in frames), parameters, module, dict(vars(cls)))
    for name, value in annotations.items():
        if name in fields:
            annotations[name] = fields[name].type = _evaluate(cls, name, value, module, names)
        elif not isinstance(value, type):
            # no field: of no use to anyone here, and its names may exist for type checkers only
            annotations[name] = ClassVar
    cls.__annotations__ = annotations


def _evaluate(
    cls: type, field: str, value: object, module: dict[str, Any], names: ChainMap[str, Any]
) -> Any:
    annotation = value
    try:
        if isinstance(value, str):  # as a class's own: Final is allowed there
            annotation = typing.ForwardRef(value, is_argument=False, is_class=True)
        holder = SimpleNamespace(__annotations__={field: annotation})
        return typing.get_type_hints(holder, module, names, include_extras=True)[field]
    except NameError as error:
        raise RegistrationError(
            f"{cls.__qualname__}.{field}: the name {error.name!r} is not defined where the class is; "
            "import it for run time too, not only under TYPE_CHECKING"
        ) from error
    except Exception as error:
        raise RegistrationError(
            f"{cls.__qualname__}.{field}: {value!r} is no type: {error}"
        ) from error
