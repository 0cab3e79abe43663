"""What is logged about single jobs: one line each, always with the same fields."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from workers.job import ClaimedJob
from workers.lifecycle import (
    Archive,
    Bury,
    Cancelled,
    Completed,
    Crashed,
    Delete,
    Discarded,
    Failed,
    Interrupted,
    Outcome,
    Release,
    Retry,
    Snoozed,
    Transition,
    Wait,
)
from workers.log_aside import aside
from workers.runtime.job_log import job_logger, log_end, spoken

JOB = ClaimedJob(7, "send", "emails", 0, "{}", 1, 0, False, 99)
ERROR = ValueError("no such address")


@pytest.mark.parametrize(
    ("outcome", "transition", "level", "text"),
    [
        (Completed(), Delete(), "DEBUG", "job 7 (send) completed in 0.25 s"),
        (Completed(), Archive("completed"), "DEBUG", "job 7 (send) completed in 0.25 s"),
        (
            Failed("...", ERROR),
            Retry(60, "Traceback ...\nValueError: no"),
            "WARNING",
            "60 s: ValueError: no",
        ),
        (
            Failed("...", ERROR),
            Retry(60, "timed out\nTraceback (most recent call last):\nValueError: no"),
            "WARNING",
            "60 s: timed out",
        ),
        (
            Failed("...", ERROR),
            Bury("failed 2 of 2 attempts"),
            "ERROR",
            "is dead: failed 2 of 2 attempts",
        ),
        (Discarded("gone"), Bury("gone"), "ERROR", "job 7 (send) is dead: gone"),
        (Crashed(), Bury("its process died"), "ERROR", "job 7 (send) is dead: its process died"),
        (Cancelled(), Archive("cancelled"), "INFO", "job 7 (send) cancelled after 0.25 s"),
        (Snoozed(5), Wait(5), "INFO", "job 7 (send) snoozed after 0.25 s"),
        (Interrupted(), Release(), "INFO", "job 7 (send) interrupted after 0.25 s"),
    ],
)
def test_every_outcome_is_one_record_with_the_same_fields(
    caplog: pytest.LogCaptureFixture,
    outcome: Outcome,
    transition: Transition,
    level: str,
    text: str,
) -> None:
    with caplog.at_level(logging.DEBUG, "workers"):
        log_end(JOB, 3, outcome, transition, 0.25)
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("workers.jobs", level)
    assert text in record.getMessage()
    expected = {
        "job_id": 7,
        "job_type": "send",
        "queue": "emails",
        "attempt": 2,
        "session": 3,
        "outcome": type(outcome).__name__.lower(),
        "duration": 0.25,
    }
    assert expected.items() <= vars(record).items()
    assert bool(record.exc_info) == isinstance(outcome, Failed)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (8.24e-05, "0.1 ms"),
        (0.0004, "0.4 ms"),
        (0.00123, "1.23 ms"),
        (0.02, "20 ms"),
        (0.1, "0.1 s"),
        (0.5, "0.5 s"),
        (1.5, "1.5 s"),
        (45, "45 s"),
        (60, "60 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (1915, "32 min"),
        (3599, "1 h"),
        (3600, "1 h"),
        (5400, "1.5 h"),
        (86_400, "24 h"),
        (172_799, "2 days"),
        (216_000, "2.5 days"),
        (31_557_600, "365 days"),
    ],
)
def test_durations_are_for_people(
    caplog: pytest.LogCaptureFixture, seconds: float, text: str
) -> None:
    assert spoken(seconds) == text
    with caplog.at_level(logging.DEBUG, "workers"):
        log_end(JOB, 3, Completed(), Delete(), seconds)
        log_end(JOB, 3, Failed("no"), Retry(seconds, "no"), 0.25)
    completed, failed = caplog.messages
    assert completed.endswith(f"completed in {text}")
    assert f"next attempt in {text}: no" in failed


class UnspeakableError(Exception):
    @property
    def __cause__(self) -> BaseException | None:  # type: ignore[override]  # hostile on purpose
        raise SystemExit


def test_an_exception_is_logged_as_it_is_stored_and_asked_for_nothing_more(
    capsys: pytest.CaptureFixture[str],
) -> None:
    plain = logging.StreamHandler()
    job_logger.addHandler(plain)
    try:
        log_end(JOB, 3, Failed("...", UnspeakableError()), Bury("failed"), 0.25)
    finally:
        job_logger.removeHandler(plain)
    assert capsys.readouterr().err == "job 7 (send) is dead: failed\n...\n"


def test_completions_are_not_logged_above_debug(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "workers"):
        log_end(JOB, 3, Completed(), Delete(), 0.25)
    assert caplog.records == []


@pytest.mark.parametrize(
    ("outcome", "transition", "text"),
    [
        (Completed(), Archive("completed", fault=ERROR), "its archive policy raised"),
        (Failed("..."), Retry(60, "boom", fault=ERROR), "its backoff raised"),
    ],
)
def test_a_policy_that_raises_is_an_error_of_its_own(
    caplog: pytest.LogCaptureFixture, outcome: Outcome, transition: Transition, text: str
) -> None:
    with caplog.at_level(logging.INFO, "workers"):
        log_end(JOB, 3, outcome, transition, 0.25)
    record = caplog.records[0]
    assert record.levelname == "ERROR"
    assert text in record.getMessage()
    assert record.exc_info is not None
    assert record.exc_info[1] is ERROR
    assert record.__dict__["job_id"] == 7


@pytest.fixture
def foreign_fields() -> Iterator[None]:
    """An application that puts fields of its own on every record, as it knows no job."""
    before = logging.getLogRecordFactory()

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        record.__dict__ |= dict.fromkeys(("job_id", "job_type", "queue", "attempt", "session"))
        return record

    logging.setLogRecordFactory(factory)
    yield
    logging.setLogRecordFactory(before)


def test_fields_of_a_record_factory_give_way(
    caplog: pytest.LogCaptureFixture, foreign_fields: None
) -> None:
    """Logging would raise: nothing would be said about jobs, and runners would die of what else they say."""
    log_end(JOB, 3, Failed("...", ERROR), Bury("failed"), 0.25)
    logging.getLogger("workers").warning("of one", extra={"job_id": 7, "session": 3})
    aside.warning("from elsewhere", extra={"job_id": 7, "session": 3})
    aside.flush(10.0)
    assert [record.getMessage() for record in caplog.records][1:] == ["of one", "from elsewhere"]
    found = [(vars(record)["job_id"], vars(record)["session"]) for record in caplog.records]
    assert found == [(7, 3)] * 3
