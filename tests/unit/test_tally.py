"""What `workers run` tells of the jobs of the last second."""

from __future__ import annotations

import logging

import pytest

from workers.cli.tally import Tally
from workers.job import ClaimedJob
from workers.lifecycle import Bury, Completed, Delete, Discarded, Failed, Outcome, Retry, Transition
from workers.telemetry import JobFinished, emit

JOB = ClaimedJob(7, "send", "emails", 0, "{}", 1, 0, False, 99)


async def test_the_dead_are_counted_apart(caplog: pytest.LogCaptureFixture) -> None:
    """A failed job has another attempt; nobody has to look after it."""
    caplog.set_level(logging.INFO, "workers")
    ends: list[tuple[Outcome, Transition]] = [
        (Completed(), Delete()),
        (Failed("no"), Retry(60, "no")),
        (Failed("no"), Retry(60, "no")),
        (Failed("no"), Bury("failed 2 of 2 attempts")),
        (Discarded("gone"), Bury("gone")),
    ]
    with Tally():
        for outcome, transition in ends:
            emit(
                JobFinished(
                    session=3, job=JOB, outcome=outcome, transition=transition, duration=0.1
                )
            )
    (record,) = [record for record in caplog.records if record.name == "workers"]
    assert record.getMessage() == "queue emails: 1 completed, 2 dead, 2 failed"
    assert vars(record)["jobs"] == {"completed": 1, "dead": 2, "failed": 2}
