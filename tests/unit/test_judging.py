"""What the fault harness concludes from a history: each thing that it may find, found, and not found where it isn't."""

from __future__ import annotations

import pytest

from tests.faults.harness import Found
from tests.faults.judging import Kills, started_again
from tests.helpers.history import Event, Kind, Verdict, check


def at(seconds: float, what: Kind, process: str = "a", job: int = 1, token: str = "") -> Event:
    """By default an attempt is told from others by its process."""
    return Event(what=what, process=process, at=seconds, job=job, token=token or process)


RUN = [at(1, "start"), at(2, "end")]


def test_job_that_ran_once_is_no_finding() -> None:
    assert check(RUN, [1]) == Verdict()


def test_acknowledged_job_that_never_ended_is_lost() -> None:
    assert check([at(1, "start")], [1, 2, None]).lost == [1, 2]


def test_what_is_explained_is_not_lost() -> None:
    assert check([], [1, 2], explained=[2, None]).lost == [1]


def test_job_that_nobody_enqueued_is_unexpected() -> None:
    assert check(RUN, [2], explained=[2]).unexpected == [1]


def test_job_that_ended_twice_is_duplicated() -> None:
    verdict = check([*RUN, at(3, "start", "b"), at(4, "end", "b")], [1])
    assert verdict == Verdict(duplicated=[1])


def test_second_attempt_after_a_failed_one_is_recovered() -> None:
    verdict = check([at(1, "start"), at(2, "broken"), at(3, "start", "b"), at(4, "end", "b")], [1])
    assert verdict == Verdict(recovered=[1])


@pytest.mark.parametrize("ended", [[at(5, "end")], []], ids=["ends later", "never ends"])
def test_start_beside_an_attempt_of_a_living_process_overlaps(ended: list[Event]) -> None:
    events = [at(1, "start"), at(3, "start", "b"), at(4, "end", "b"), *ended]
    assert check(events, [1]).overlapping == [1]


@pytest.mark.parametrize("what", ["killed", "frozen", "gone"])
def test_start_after_the_process_was_interfered_with_does_not_overlap(what: Kind) -> None:
    events = [at(1, "start"), at(2, what, job=0), at(3, "start", "b"), at(4, "end", "b")]
    assert check(events, [1]).overlapping == []


@pytest.mark.parametrize("other", [at(2, "killed", "c", job=0), at(3.5, "killed", job=0)])
def test_another_kill_excuses_no_overlap(other: Event) -> None:
    """Of another process, or after the second start."""
    events = [at(1, "start"), other, at(3, "start", "b"), at(4, "end", "b")]
    assert check(events, [1]).overlapping == [1]


def recovery(events: list[Event], kills: Kills) -> Found:
    found = Found(injected=1, jobs=1)
    started_again(found, events, kills, within=3)
    return found


def test_running_job_is_due_from_the_kill_on() -> None:
    found = recovery([at(1, "start"), at(4, "start", "b")], Kills({"a": 2}))
    assert found.recovery_s == 2
    assert found.late == []


def test_job_that_starts_late_is_a_finding() -> None:
    found = recovery([at(1, "start"), at(5.5, "start", "b")], Kills({"a": 2}))
    assert found.recovery_s == 3.5
    assert found.late == [3.5]


@pytest.mark.parametrize("what", ["end", "broken"])
def test_attempt_that_had_come_to_its_end_is_not_waited_for(what: Kind) -> None:
    found = recovery([at(1, "start"), at(1.5, what), at(9, "start", "b")], Kills({"a": 2}))
    assert found.recovery_s is None


def test_claimed_job_that_had_not_begun_waits_like_any_other() -> None:
    assert recovery([at(6, "start", "b")], Kills({"a": 2}, {"a": {1}})).recovery_s is None


def test_heir_that_is_killed_before_it_begins_starts_the_time_anew() -> None:
    events = [at(1, "start"), at(6, "start", "c")]
    assert recovery(events, Kills({"a": 2, "b": 4}, {"a": {1}, "b": {1}})).recovery_s == 2
    assert recovery(events, Kills({"a": 2, "b": 4}, {"a": {1}})).recovery_s == 4


def test_each_of_several_kills_is_judged() -> None:
    events = [at(1, "start"), at(5.5, "start", "b"), at(7, "start", "c")]
    found = recovery(events, Kills({"a": 2, "b": 6}))
    assert found.recovery_s == 3.5
