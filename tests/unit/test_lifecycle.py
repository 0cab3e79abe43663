"""The table of what an outcome does to a job. Guarantees 5 and 6, rules 20 and 21."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.backoff import Exponential, Fixed, as_backoff
from workers.job import ClaimedJob
from workers.lifecycle import (
    MAX_DELAY,
    Archive,
    Bury,
    Cancelled,
    Completed,
    Crashed,
    Delete,
    Discarded,
    Failed,
    Interrupted,
    JobPolicy,
    Outcome,
    Release,
    Retry,
    Snoozed,
    Transition,
    Wait,
    decide,
)


def claimed(*, retries: int = 0, crashes: int = 0) -> ClaimedJob:
    return ClaimedJob(1, "send_email", "emails", 10, "{}", retries, crashes, False, 77)


POLICY = JobPolicy(max_attempts=3, max_crashes=2, backoff=Fixed(5))

TABLE: list[tuple[Outcome, int, Transition]] = [
    (Completed(), 0, Delete()),
    (Failed("boom"), 0, Retry(5, "boom")),
    (Failed("boom"), 1, Retry(5, "boom")),
    (Failed("boom"), 2, Bury("failed 3 of 3 attempts", "boom")),
    (Failed("boom"), 9, Bury("failed 10 of 3 attempts", "boom")),
    (Cancelled("why"), 0, Archive("cancelled", "why")),
    (Discarded("why", "trace"), 0, Bury("why", "trace")),
    (Snoozed(60), 2, Wait(60)),
    (Snoozed(60, begun=False), 2, Wait(60, begun=False)),
    (Interrupted(), 2, Release()),
    (Crashed(), 0, Bury("its process died under it 2 times", attempted=False)),
]


@pytest.mark.parametrize(("outcome", "retries", "transition"), TABLE)
def test_the_table(outcome: Outcome, retries: int, transition: Transition) -> None:
    assert decide(claimed(retries=retries, crashes=2), outcome, POLICY) == transition


def test_the_defaults() -> None:
    policy = JobPolicy()
    assert (policy.max_attempts, policy.max_crashes, policy.archive) == (25, 5, False)
    assert policy.backoff == Exponential()


def test_the_archive_policy() -> None:
    done = Archive("completed")
    assert decide(claimed(), Completed(), JobPolicy(archive=True)) == done
    some = JobPolicy(archive=lambda job: job.retries > 0)
    assert decide(claimed(), Completed(), some) == Delete()
    assert decide(claimed(retries=1), Completed(), some) == done


def test_the_backoff_is_asked_with_the_attempts_made() -> None:
    asked: list[int] = []

    def note(attempt: int) -> float:
        asked.append(attempt)
        return 1.0

    policy = JobPolicy(backoff=as_backoff(note))
    for retries in (0, 1, 7):
        decide(claimed(retries=retries), Failed("boom"), policy)
    assert asked == [1, 2, 8]


def broken(_: Any) -> Any:
    raise RuntimeError("my fault")


def test_a_predicate_that_raises_loses_no_outcome() -> None:
    found = decide(claimed(), Completed(), JobPolicy(archive=broken))
    assert isinstance(found, Archive)
    assert (found.state, str(found.fault)) == ("completed", "my fault")


@pytest.mark.parametrize("function", [broken, lambda _: "soon", lambda _: None, lambda _: 1j])
def test_a_strategy_that_raises_retries_all_the_same(function: Callable[[int], Any]) -> None:
    found = decide(claimed(), Failed("boom"), JobPolicy(backoff=as_backoff(function)))
    assert isinstance(found, Retry)
    assert found.delay == 60
    assert found.fault is not None
    assert "in the retry policy" in found.error
    assert "boom" in found.error


@given(st.floats() | st.integers(), st.sampled_from(["failed", "snoozed"]))
def test_no_delay_can_overflow_in_sql(seconds: float, kind: str) -> None:
    policy = JobPolicy(backoff=as_backoff(lambda _: seconds))
    outcome: Outcome = Failed("boom") if kind == "failed" else Snoozed(seconds)
    found = decide(claimed(), outcome, policy)
    assert isinstance(found, Retry | Wait)
    assert isinstance(found.delay, float)
    assert math.isfinite(found.delay)
    assert 0 <= found.delay <= MAX_DELAY
