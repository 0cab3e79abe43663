"""What the stress test says, below the table and while it runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from examples.stress_test.display import LineDisplay
from examples.stress_test.ledger import Accounts, QueueAccount
from examples.stress_test.messages import Rescued
from examples.stress_test.options import parse
from examples.stress_test.play import INTERRUPTION, Result
from examples.stress_test.report import print_report


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


def said(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "3 jobs were not run."),
        (["--database-url", "embedded:./data"], "3 jobs are still in the table, for whoever"),
    ],
)
def test_what_waits_is_still_there_if_the_database_is(
    console: Console, flags: list[str], message: str
) -> None:
    accounts = Accounts(queues={"training": QueueAccount(enqueued=3, waiting=3)})
    result = Result(accounts, 1.0, INTERRUPTION, failed=False, killed=0)
    print_report(console, result, parse(flags))
    assert message in said(console)


@pytest.mark.parametrize(
    ("running", "message"),
    [
        (14, "rescued 16 jobs of r (2 of them were claimed, and not begun yet or just done): gone"),
        (16, "rescued 16 jobs of r: gone"),
        (None, "rescued 16 jobs of r: gone"),
    ],
)
def test_a_rescue_of_more_jobs_than_ran_is_explained(
    console: Console, running: int | None, message: str
) -> None:
    LineDisplay(console).hear(Rescued("r", 16, "gone", running))
    assert said(console) == f"{message}\n"
