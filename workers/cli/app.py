"""From `module:attr` to a Runner."""

from __future__ import annotations

import importlib
import inspect
import operator
import os
import sys
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack
from typing import Any

import click

from .._annotations import signature
from ..runner import Runner
from .command import one_line

__all__ = ["load", "make_runner", "takes_database_url"]

_URL = "database_url"


def load(spec: str) -> Any:
    """Import what `spec` names, with the current directory on sys.path. Raises ClickException."""
    name, _, path = spec.partition(":")
    if name.endswith(".py") or "/" in name:
        dotted = name.removesuffix(".py").replace(os.sep, "/").strip("./").replace("/", ".")
        raise click.BadParameter(
            f"give the module, not its file: {dotted}:{path or 'runner'}", param_hint="--app"
        )
    if not all(part.isidentifier() for part in [*name.split("."), *path.split(".")]):
        raise click.BadParameter(
            "give it as module:attr, such as shop.jobs:runner", param_hint="--app"
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name and f"{name}.".startswith(f"{error.name}."):
            raise click.ClickException(_no_module(error.name, here)) from error
        raise _import_failed(name, error) from error
    except Exception as error:
        raise _import_failed(name, error) from error
    try:
        return operator.attrgetter(path)(module)
    except AttributeError as error:
        fitting = [key for key, value in vars(module).items() if _would_do(value, name)]
        hint = f"; it has {', '.join(fitting)}" if fitting else ""
        raise click.ClickException(f"module {name} has no {path!r}{hint}") from error


def _would_do(value: Any, module: str) -> bool:
    """Whether it is a runner, or a function of this module that looks as if it made one."""
    if isinstance(value, Runner):
        return True
    if not inspect.isfunction(value) or value.__module__ != module or value.__name__[0] == "_":
        return False
    try:
        takes_url = takes_database_url(value, module)
    except click.ClickException:
        return False
    made = str(signature(value).return_annotation)
    return takes_url or "Runner" in made or "runner" in value.__name__.lower()


def takes_database_url(target: Any, spec: str) -> bool:
    """Whether `target` is a function that is to be given the DSN. Raises ClickException if it can't be used at all."""
    if isinstance(target, Runner):
        return False
    if not callable(target) or isinstance(target, type):
        raise click.ClickException(_wrong(spec, "is", target))
    parameters = signature(target).parameters
    for parameter in parameters.values():
        optional = parameter.default is not parameter.empty
        variable = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        if parameter.name != _URL and not (optional or variable):
            raise click.ClickException(
                f"{spec} wants {parameter.name!r}: it can have one parameter, {_URL}, or none"
            )
    return _URL in parameters


async def make_runner(
    target: Any, arguments: Mapping[str, str], stack: AsyncExitStack, spec: str
) -> Runner[Any]:
    """The Runner that `target` is, returns, or yields as a context manager, which `stack` leaves at the end."""
    made = target
    if not isinstance(made, Runner):
        made = target(**arguments)
        if inspect.isawaitable(made):
            made = await made
        if isinstance(made, AbstractAsyncContextManager):
            made = await stack.enter_async_context(made)
        elif isinstance(made, AbstractContextManager):
            made = stack.enter_context(made)
    if not isinstance(made, Runner):
        raise click.ClickException(_wrong(spec, "returned", made))
    return made


def _wrong(spec: str, verb: str, found: object) -> str:
    what = "a class" if isinstance(found, type) else f"of type {type(found).__name__}"
    if verb == "returned":
        what = "None" if found is None else f"something {what}"
    return f"{spec} must be a workers.Runner, or a function that returns one; it {verb} {what}"


def _no_module(name: str, here: str) -> str:
    if name.partition(".")[0] == "workers":
        return f"there is no module {name!r}: the name `workers` is this library's; call your package something else"
    return f"there is no module {name!r} in {here} or elsewhere on sys.path"


def _import_failed(name: str, error: Exception) -> click.ClickException:
    return click.ClickException(f"{name} can't be imported: {one_line(error)} (--debug shows more)")
