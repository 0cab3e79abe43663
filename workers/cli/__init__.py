"""The command `workers`. One module a command; what they share is in `command`, `database` and `logs`."""

from __future__ import annotations

import importlib.util
import sys

__all__ = ["main"]

_EXTRA = ("click", "rich")


def main() -> None:
    """Run the command line in sys.argv, and exit."""
    if missing := [name for name in _EXTRA if importlib.util.find_spec(name) is None]:
        names = " ".join(missing)
        sys.exit(
            f"Error: the command line needs more: pip install {names} (the extra `cli` of workers-pg)"
        )
    from .commands import workers

    workers(prog_name="workers")
