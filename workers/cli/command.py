"""What every command has: `--debug`, and errors in one line that give no secret away."""

from __future__ import annotations

import traceback
from pathlib import Path
from typing import Any, NoReturn

import click
import psycopg

from .._connection_advice import add_advice
from ..errors import WorkersError
from ..hiding import without_passwords

__all__ = ["Command", "one_line", "show_tracebacks", "tell"]

_DEBUG = "workers.debug"


class Command(click.Command):
    """A command whose errors are one line on standard error and exit code 1."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        debug = click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            callback=lambda context, option, value: show_tracebacks(context, value),
            help="Show the traceback of an error.",
        )
        self.params.append(debug)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except Exception as error:
            if isinstance(error, click.ClickException):
                _show_cause(ctx, error.__cause__)
                raise
            if _is_for_click(error):
                raise
            raise _shown(ctx, error) from error


def tell(context: click.Context, error: BaseException) -> NoReturn:
    """Write now what `invoke` would write of `error` at the end, and go there: for a command that may not get so far."""
    if not isinstance(error, Exception) or _is_for_click(error):
        raise error
    if isinstance(error, click.ClickException):
        _show_cause(context, error.__cause__)
    else:
        error = _shown(context, error)
    error.show()
    raise click.exceptions.Exit(error.exit_code) from error


def _shown(context: click.Context, error: Exception) -> click.ClickException:
    """What click shows of it; its traceback, where that is wanted, is written here."""
    _show_cause(context, error)
    return click.ClickException(one_line(error))


def _show_cause(context: click.Context, error: BaseException | None) -> None:
    if error is not None and context.meta.get(_DEBUG):
        click.echo(without_passwords("".join(traceback.format_exception(error))), err=True)


def _is_for_click(error: Exception) -> bool:
    """Whether click itself knows what to do, which may be nothing: `| head` has read enough."""
    if isinstance(error, click.exceptions.Exit | click.Abort):
        return True
    return isinstance(error, BrokenPipeError) and _is_of_output(error)


def _is_of_output(error: BaseException) -> bool:
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code is click.echo.__code__ for frame, _ in frames)


def show_tracebacks(context: click.Context, value: bool) -> None:
    """Show what led to an error of this command, too."""
    context.meta[_DEBUG] = context.meta.get(_DEBUG, False) or value


def one_line(error: BaseException) -> str:
    """What went wrong, for whoever called the command; where, when it may be a fault in a program."""
    text = " ".join(str(error).split())
    if isinstance(error, WorkersError):
        return without_passwords(text)
    if isinstance(error, psycopg.Error):
        add_advice(error)
        text = "; ".join([text, *getattr(error, "__notes__", ())])
    name = type(error).__name__
    if not isinstance(error, psycopg.Error | OSError):
        name += _place(error)
    return without_passwords(f"{name}: {text}" if text else name)


def _place(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    if not frames or isinstance(error, SyntaxError):  # whose text says where
        return ""
    return f" in {Path(frames[-1].filename).name}:{frames[-1].lineno}"
