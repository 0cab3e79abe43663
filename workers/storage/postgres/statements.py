"""The SQL of this engine: one file a query under `queries/`, read once at import.

Parameters are named, in psycopg's form: %(name)s. A line `INCLUDE name` stands for the text of another one.
"""

from __future__ import annotations

from importlib.resources import files

__all__ = ["statement"]

_QUERIES = files(__package__) / "queries"


def statement(name: str) -> str:
    """The text of queries/<name>.sql, without its comments: servers log and cache what is sent."""
    lines = (_QUERIES / f"{name}.sql").read_text("utf-8").splitlines()
    kept = (line.partition("--")[0].rstrip() for line in lines)
    return "\n".join(_included(line) for line in kept if line)


def _included(line: str) -> str:
    word, _, name = line.partition(" ")
    return statement(name) if word == "INCLUDE" else line
