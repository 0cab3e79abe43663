"""What a worker said: the file that its standard output and error went to."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

__all__ = ["START", "last_error", "removed", "tail"]

_TAIL = 4_000_000
START = "---- start"
_NAMED = re.compile(r"(.*ERROR: .*|error|[\w.]*(Error|Exception)|psycopg\.errors\.\w+)(:|$)")


def tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL))
        return file.read().decode(errors="replace")


#: What begins something else than the rest of an error.
_NEXT = re.compile(r"ERROR|WARNING|Traceback|The above|During|\[|CONTEXT|length:|at |Trace:|File ")


def last_error(text: str) -> str:
    """The last line that names an exception, as a traceback ends with, and what caused it; else the last line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [at for at, line in enumerate(lines) if _NAMED.match(line)]
    if not named:
        return (lines or ["it says nothing"])[-1][:300]
    words = [lines[named[-1]]]
    for line in lines[named[-1] + 1 : named[-1] + 3]:  # what it says on further lines
        if _NEXT.match(line):
            break
        words.append(line)
    between = lines[named[-2] : named[-1]] if len(named) > 1 else []
    if any("direct cause" in line for line in between):
        words.append(f"(from {lines[named[-2]]})")
    return " ".join(words)[:300]


def removed(folder: Path) -> None:
    """Remove the folder unless there is something in it that a human should read."""
    if not any(folder.iterdir()):
        shutil.rmtree(folder)
