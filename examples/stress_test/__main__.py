"""`python -m examples.stress_test`: see --help."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Sequence

import psycopg
from rich.console import Console

from workers import WorkersError

from .database import prepare
from .display import open_display
from .options import parse
from .play import INTERRUPTION, play
from .report import as_json, print_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Play; return 0 when no job was lost, 130 when it was interrupted before the end."""
    options = parse(arguments)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # stops the embedded server, too
    console = Console(stderr=options.json)
    try:
        dsn = prepare(options)
        with open_display(console) as display:
            result = asyncio.run(play(dsn, options, display))
    except (WorkersError, psycopg.Error, ExceptionGroup) as error:
        print(f"The game can't be played: {_cause(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    print_report(console, result, options)
    if options.json:
        print(as_json(result))
    if not result.accounts.honest or result.failed:
        return 1
    return 130 if result.ended_by == INTERRUPTION else 0


def _cause(error: Exception) -> Exception:
    """Return what the players' tasks failed with; anything but a database's error is a bug of the game."""
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    if not isinstance(error, WorkersError | psycopg.Error):
        raise error
    return error


if __name__ == "__main__":
    sys.exit(main())
