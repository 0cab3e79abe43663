"""Arrays as PostgreSQL's own text: psycopg takes ten times as long to dump a list, element by element."""

from __future__ import annotations

from collections.abc import Iterable

__all__ = ["integer_array", "number_array", "text_array"]


def number_array(values: Iterable[float | None]) -> str:
    """The literal of an array of numbers or booleans."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def integer_array(values: list[int]) -> str:
    """The same of integers alone: Python's own way to write such a list is theirs but for the brackets."""
    return f"{{{repr(values)[1:-1]}}}"


def text_array(values: Iterable[str | None]) -> str:
    """The literal of an array of texts."""
    return "{" + ",".join([_quoted(value) for value in values]) + "}"


def _quoted(text: str | None) -> str:
    if text is None:
        return "NULL"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
