"""The enqueue statements, in the words of each kind of connection."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any

from .storage.postgres.statements import statement

__all__ = [
    "ENQUEUE",
    "ENQUEUE_AT",
    "ENQUEUE_BATCH",
    "ENQUEUE_COPY",
    "ENQUEUE_DEDUPLICATED",
    "Query",
]


class Query:
    """One of the enqueue statements, in psycopg's words and in SQLAlchemy's."""

    def __init__(self, name: str) -> None:
        self.text = statement(name)

    @cached_property
    def clause(self) -> Any:
        """The statement for SQLAlchemy.

        `::` after a parameter would be read as part of it. JSON goes through text, as asyncpg asks for the type that the
        statement gives a parameter first, and some drivers encode jsonb themselves.
        """
        from sqlalchemy import text

        json = re.sub(r"%\((\w+)\)s::jsonb", r"CAST(CAST(:\1 AS text) AS jsonb)", self.text)
        cast = re.sub(r"%\((\w+)\)s::(\w+(?:\[\])?)", r"CAST(:\1 AS \2)", json)
        return text(re.sub(r"%\((\w+)\)s", r":\1", cast))


ENQUEUE = Query("enqueue")
ENQUEUE_AT = Query("enqueue_at")
ENQUEUE_BATCH = Query("enqueue_batch")
ENQUEUE_DEDUPLICATED = Query("enqueue_deduplicated")
#: Many ordinary jobs whose ids nobody wants: COPY where the connection can, else as a batch. Its data may be any iterable.
ENQUEUE_COPY = Query("enqueue_batch")
