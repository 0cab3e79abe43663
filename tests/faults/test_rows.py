"""Every row of the table, as small as it goes. `make faults` runs them at full size."""

from __future__ import annotations

import pytest

import tests.faults.rows  # noqa: F401 - fills ROWS
from tests.faults.conftest import Say
from tests.faults.harness import ROWS, Scale, run
from tests.helpers.nursery import Nursery
from tests.helpers.server import TestServer

#: A machine that is busy with other things takes longer.
MARGIN = 2.0


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].run is not None])
def test_row(name: str, server: TestServer, forks: Nursery, say: Say) -> None:
    entry = ROWS[name]
    report = run(entry, Scale.TINY, 1, server.dsn, forks, margin=MARGIN)
    if report.not_run:
        pytest.skip(f"row {name}, {entry.fault}: {report.not_run}")
    worst = "" if report.recovery_s is None else f", worst recovery {report.recovery_s:.2f} s"
    say(f"{entry.fault}: {report.injected} times, {report.jobs} jobs{worst}")
    assert report.passed, "\n".join(report.broken)
