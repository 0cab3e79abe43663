"""Arrays come out of PostgreSQL as they were put into its text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, LiteralString

import psycopg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from workers.storage.postgres.literals import integer_array, number_array, text_array

#: All that PostgreSQL can hold.
_TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"))

once_per_test = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def back(conn: psycopg.Connection[Any], type_: LiteralString, literal: str) -> list[Any]:
    row = conn.execute(f"SELECT %s::{type_}[]", [literal]).fetchone()
    assert row is not None
    found: list[Any] = row[0]
    return found


@once_per_test
@given(st.lists(st.none() | _TEXTS))
@example(["one\nand another"])  # what stands between texts that are quoted at once
@example(["", "\n", "", None, "NULL", "null"])
@example(['{"a": "b\\"c\\\\"}', "'", "{}", ",", " "])
def test_texts(conn: psycopg.Connection[Any], texts: list[str | None]) -> None:
    assert back(conn, "text", text_array(texts)) == texts
    assert back(conn, "text", text_array(iter(texts))) == texts


@once_per_test
@given(st.lists(st.integers(-(2**63), 2**63 - 1)))
def test_integers(conn: psycopg.Connection[Any], numbers: list[int]) -> None:
    assert back(conn, "bigint", integer_array(numbers)) == numbers
    assert back(conn, "bigint", number_array(numbers)) == numbers


@once_per_test
@given(st.lists(st.none() | st.floats(allow_nan=False)))
@example([math.inf, -math.inf, -0.0, 5e-324])
def test_floats(conn: psycopg.Connection[Any], numbers: list[float | None]) -> None:
    assert back(conn, "float8", number_array(numbers)) == numbers


@pytest.mark.parametrize("literal", [text_array, number_array, integer_array])
def test_nothing(literal: Callable[[Sequence[Any]], str]) -> None:
    assert literal([]) == "{}"


def test_booleans(conn: psycopg.Connection[Any]) -> None:
    assert back(conn, "boolean", number_array([True, None, False])) == [True, None, False]
