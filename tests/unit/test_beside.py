"""What tests.faults.beside makes of what it saw."""

from __future__ import annotations

import pytest

from tests.faults.beside.kinds import KINDS
from tests.faults.beside.output import last_error
from tests.faults.beside.table import story
from tests.faults.beside.trial import Outcome

CHAINED = """
Traceback (most recent call last):
  File "worker.py", line 1, in fetch
psycopg.errors.NumericValueOutOfRange: integer out of range
CONTEXT:  SQL statement

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "worker.py", line 2, in fetch
library.ConnectorException:
    Database error.
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "it says nothing"),
        ("one\ntwo\n", "two"),
        (
            CHAINED,
            "library.ConnectorException: Database error. "
            "(from psycopg.errors.NumericValueOutOfRange: integer out of range)",
        ),
        ("  Error.captureStackTrace(err)\nerror: no\n  length: 1,\n", "error: no"),
        ("ValidationError: 1 error\nheaders\n  a dictionary\nERROR:x:", "ValidationError: 1 error headers a dictionary"),
    ],
)  # fmt: skip
def test_last_error(text: str, expected: str) -> None:
    assert last_error(text) == expected


def test_story() -> None:
    """A process that ends, and jobs that are never finished."""
    outcome = Outcome(library="x", version="1", kind="shape", verdict="stopped", how="a|b `c`")
    outcome.good, outcome.later, outcome.unfinished = 200, True, 3
    assert story(outcome) == "200 of 200 good jobs ran, 3 stay unfinished in its table: `a\\|b 'c'`"
    outcome.exits, outcome.good_at_first_exit, outcome.good = 4, 7, 50
    assert story(outcome).startswith(
        "its process ended after 7 good jobs; ended 4x in all, it had run 50 of 200"
    )


def test_all_together_is_every_row_of_every_kind() -> None:
    rows = KINDS["all"].all_rows
    assert len(rows) == sum(len(kind.all_rows) for name, kind in KINDS.items() if name != "all")
