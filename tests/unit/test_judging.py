"""What the fault harness concludes from a history: each thing that it may find, found, and not found where it isn't."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from tests.faults.harness import Found
from tests.faults.judging import Kills, started_again
from tests.helpers.history import Event, History, Kind, Verdict, check, read


def at(seconds: float, what: Kind, process: str = "a", job: int = 1, token: str = "") -> Event:
    """By default an attempt is told from others by its process."""
    return Event(what=what, process=process, at=seconds, job=job, token=token or process)


def ok(*jobs: int) -> list[Event]:
    """They were acknowledged; the commit was sent right at the beginning."""
    return [at(0.5, "ok", "producer", job) for job in jobs]


RUN = [at(1, "start"), at(2, "end")]


def test_job_that_ran_once_is_no_finding() -> None:
    assert check([*ok(1), *RUN]) == Verdict()


def test_acknowledged_job_that_never_ended_is_lost() -> None:
    assert check([*ok(1, 2), at(1, "start")]).lost == [1, 2]


def test_what_is_explained_is_not_lost() -> None:
    assert check([*ok(1, 2), at(3, "explained", "test", 2)]).lost == [1]


def test_job_that_nobody_enqueued_is_unexpected() -> None:
    assert check([*ok(2), *RUN]).unexpected == [1]


def test_job_whose_commit_was_not_confirmed_may_have_run_or_not() -> None:
    announced = [at(0.5, "unknown", "producer", job) for job in (1, 2)]
    assert check([*announced, *RUN]) == Verdict()


def test_job_that_began_before_its_commit_was_sent_is_premature() -> None:
    sent = Event(what="ok", process="producer", at=3, job=1, since=1.5)
    assert check([sent, *RUN]) == Verdict(premature=[1])
    assert check([msgspec.structs.replace(sent, since=0.9), *RUN]) == Verdict()


def test_job_that_ended_twice_is_duplicated() -> None:
    verdict = check([*ok(1), *RUN, at(3, "start", "b"), at(4, "end", "b")])
    assert verdict == Verdict(duplicated=[1], repeated=[1])


def test_job_that_a_living_process_had_finished_is_repeated() -> None:
    again = [at(3, "start", "b"), at(4, "end", "b")]
    assert check([*ok(1), *RUN, *again]).repeated == [1]
    for hit in (at(2.5, "killed", job=0), at(3.2, "gone", job=0)):
        assert check([*ok(1), *RUN, hit, *again]).repeated == []
    for hit in (at(0.2, "frozen", job=0), at(2.5, "killed", "b", job=0), at(9, "gone", job=0)):
        assert check([*ok(1), *RUN, hit, *again]).repeated == [1]


def test_attempt_that_was_frozen_and_woken_may_be_repeated() -> None:
    """It ended long after the moment, and its claim was somebody else's by then."""
    again = [at(3, "start", "b"), at(4, "end", "b")]
    assert check([*ok(1), *RUN, at(1.2, "frozen", job=0), *again]).repeated == []
    assert check([*ok(1), *RUN, at(1.2, "frozen", "b", job=0), *again]).repeated == [1]


def test_second_attempt_after_a_failed_one_is_recovered() -> None:
    again = [at(3, "start", "b"), at(4, "end", "b")]
    verdict = check([*ok(1), at(1, "start"), at(2, "broken"), *again])
    assert verdict == Verdict(recovered=[1])


@pytest.mark.parametrize("ended", [[at(5, "end")], []], ids=["ends later", "never ends"])
def test_start_beside_an_attempt_of_a_living_process_overlaps(ended: list[Event]) -> None:
    events = [at(1, "start"), at(3, "start", "b"), at(4, "end", "b"), *ended]
    assert check([*ok(1), *events]).overlapping == [1]


@pytest.mark.parametrize("what", ["killed", "frozen", "gone"])
def test_start_after_the_process_was_interfered_with_does_not_overlap(what: Kind) -> None:
    events = [at(1, "start"), at(2, what, job=0), at(3, "start", "b"), at(4, "end", "b")]
    assert check([*ok(1), *events]).overlapping == []


@pytest.mark.parametrize("other", [at(2, "killed", "c", job=0), at(3.5, "killed", job=0)])
def test_another_kill_excuses_no_overlap(other: Event) -> None:
    """Of another process, or after the second start."""
    events = [at(1, "start"), other, at(3, "start", "b"), at(4, "end", "b")]
    assert check([*ok(1), *events]).overlapping == [1]


def test_history_that_was_kept_is_judged_again(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    history = History(path)
    for event in [at(1, "start"), at(2, "start", job=2), at(3, "end", job=2)]:
        history.add(event)
    verdict = history.check([1, 2, 3], explained=[3])
    history.close()
    assert verdict == Verdict(lost=[1])
    assert check(read(path)) == verdict


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
