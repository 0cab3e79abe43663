"""Arrays as PostgreSQL's own text: psycopg takes ten times as long to dump a list, element by element."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

__all__ = ["integer_array", "number_array", "plain", "text_array"]


def plain(params: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with their lists as literals: an application may have made lists something else for psycopg, jsonb say."""
    return {
        name: _array(value) if isinstance(value, list) else value for name, value in params.items()
    }


def _array(values: list[Any]) -> str:
    texts = any(isinstance(value, str) for value in values)
    return text_array(values) if texts else number_array(values)


def number_array(values: Iterable[float | None]) -> str:
    """The literal of an array of numbers or booleans."""
    return "{" + ",".join(["NULL" if value is None else str(value) for value in values]) + "}"


def integer_array(values: list[int]) -> str:
    """The same of integers alone: Python's own way to write such a list is theirs but for the brackets."""
    return f"{{{repr(values)[1:-1]}}}"


def text_array(values: Iterable[str | None]) -> str:
    """The literal of an array of texts."""
    texts = values if isinstance(values, list) else list(values)
    try:
        # all at once where nothing stands in the way of a separator, as nothing does in payloads
        joined = "\n".join(texts)  # type: ignore[arg-type]
    except TypeError:
        pass
    else:
        if texts and joined.count("\n") == len(texts) - 1:
            escaped = joined.replace("\\", "\\\\").replace('"', '\\"')
            return '{"' + escaped.replace("\n", '","') + '"}'
    return "{" + ",".join([_quoted(value) for value in texts]) + "}"


def _quoted(text: str | None) -> str:
    if text is None:
        return "NULL"
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
