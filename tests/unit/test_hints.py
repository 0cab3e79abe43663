"""Scan hints: where the next claim starts, and how often it looks behind itself (rules 9 to 11). Pure."""

from __future__ import annotations

from itertools import count

import pytest

from workers.job import ClaimedJob
from workers.storage.postgres.hints import (
    COSTLY,
    MAX_PAUSE,
    MAX_PRIORITIES,
    THOROUGH_SHARE,
    TRAIL_BEHIND,
    TRAIL_EVERY,
    Plan,
    ScanHints,
    ScanKind,
)

TOOK = 0.001  # seconds that a scan takes here

_ids = count(1)


def jobs(*positions: int, priority: int = 0) -> list[tuple[ClaimedJob, int]]:
    """What a scan found."""
    return [
        (ClaimedJob(next(_ids), "mail", "default", priority, "{}", 0, 0, False, 1), position)
        for position in positions
    ]


class Claims:
    """The hints of a queue that is claimed from, ten jobs at a time."""

    def __init__(self) -> None:
        self.hints = ScanHints()
        self.now = 100.0

    def scan(
        self, *found: tuple[ClaimedJob, int], thorough: bool = False, took: float = TOOK
    ) -> tuple[Plan, bool]:
        """One claim that finds `found`; its plan, and whether a thorough one must follow."""
        plan = self.hints.plan(self.now, thorough=thorough)
        self.now += took
        return plan, self.hints.claimed(plan, found, 10, self.now, took)

    def kind(self) -> ScanKind:
        return self.scan()[0].kind


@pytest.fixture
def claims() -> Claims:
    """Hints after a thorough scan that found jobs of two priorities and expensive enough to be rare."""
    claims = Claims()
    claims.scan(took=10.0)
    claims.scan(*jobs(7, 9, priority=5), *jobs(3, 4), took=10.0)
    claims.hints.plan(claims.now)  # the trailing scan that is due
    return claims


def test_the_first_scan_is_thorough() -> None:
    """Rule 11: at the start nothing is known."""
    assert Claims().kind() is ScanKind.THOROUGH


def test_nothing_known_is_thorough() -> None:
    """Rule 11: without a hint there is no other way to look."""
    claims = Claims()
    claims.scan(took=10.0)
    assert claims.kind() is ScanKind.THOROUGH


def test_a_scan_starts_where_the_last_one_ended(claims: Claims) -> None:
    """Rules 9 and 10: per priority, highest first."""
    plan, _ = claims.scan(*jobs(12, 15))
    assert plan == Plan(ScanKind.HINTED, [5, 0], [10, 5])
    assert claims.scan()[0] == Plan(ScanKind.HINTED, [5, 0], [10, 16])


def test_a_thorough_scan_can_be_asked_for(claims: Claims) -> None:
    """Rule 11: before "empty" is concluded."""
    assert claims.scan(thorough=True)[0] == Plan(ScanKind.THOROUGH)


def test_thorough_scans_cost_two_percent(claims: Claims) -> None:
    """Rule 11: the next one waits fifty times as long as the last one took."""
    claims.scan(thorough=True, took=0.5)
    claims.now += THOROUGH_SHARE * 0.5 - 0.1
    assert claims.kind() is not ScanKind.THOROUGH
    claims.now += 0.2
    assert claims.kind() is ScanKind.THOROUGH


def test_jobs_that_no_hint_points_at_wait_no_longer_than_half_a_minute(claims: Claims) -> None:
    """Rule 11: however long thorough scans take."""
    claims.scan(thorough=True, took=10.0)
    claims.now += MAX_PAUSE - 0.1
    assert claims.kind() is not ScanKind.THOROUGH
    claims.now += 0.2
    assert claims.kind() is ScanKind.THOROUGH


@pytest.mark.parametrize("before", [0, 1, 5])
def test_one_scan_that_took_long_is_not_believed(before: int) -> None:
    """Rule 11: it waited for a table lock or a server that stood still, and says nothing of the next one."""
    claims = Claims()
    for _ in range(before):
        claims.scan(*jobs(3), thorough=True)
    claims.scan(*jobs(5), thorough=True, took=2.0)
    claims.now += THOROUGH_SHARE * (TOOK if before else COSTLY) + 0.001
    assert claims.kind() is ScanKind.THOROUGH
    claims.scan(*jobs(7))
    claims.now += THOROUGH_SHARE * TOOK + 0.001
    assert claims.kind() is ScanKind.THOROUGH


@pytest.mark.parametrize("short", [0, 1, 2, 7])
def test_long_scans_between_short_ones_cost_as_little(short: int) -> None:
    """Rule 11: one of them is not believed, but not one in two."""
    claims, begun, long = Claims(), 100.0, 0.0
    while claims.now < begun + 1000:
        for took in (*[TOOK] * short, 0.5):
            while claims.hints.plan(claims.now).kind is not ScanKind.THOROUGH:
                claims.now += 0.01
            claims.now += took
            claims.hints.claimed(Plan(ScanKind.THOROUGH), jobs(3), 10, claims.now, took)
            long += took
    assert long <= 0.045 * (claims.now - begun)


def test_a_notification_below_the_hint_pulls_it_back(claims: Claims) -> None:
    """Rule 11: and one above it does not push it forward."""
    claims.hints.noticed(5, 2)
    claims.hints.noticed(5, 50)
    claims.hints.noticed(0, 400)
    assert claims.scan()[0] == Plan(ScanKind.HINTED, [5, 0], [2, 5])


def test_a_notification_during_a_scan_pulls_back_where_that_ends(claims: Claims) -> None:
    """Rule 11: it is of a commit that the scan may not have seen, though it looked there."""
    plan = claims.hints.plan(claims.now)
    assert plan.positions == [10, 5]
    claims.hints.noticed(0, 7)
    claims.hints.claimed(plan, jobs(6, 8), 10, claims.now, TOOK)
    assert claims.scan(*jobs(7))[0].positions == [10, 7]
    assert claims.scan()[0].positions == [10, 8], "once"


def test_a_notification_makes_a_priority_known(claims: Claims) -> None:
    """Rule 10: known priorities come from notifications too."""
    claims.hints.noticed(-7, 40)
    assert claims.scan()[0] == Plan(ScanKind.HINTED, [5, 0, -7], [10, 5, 40])


def test_a_trailing_scan_each_second(claims: Claims) -> None:
    """Rule 11: once a second, from where the hints stood 3 s ago."""
    kinds = []
    for _ in range(40):
        kinds.append(claims.kind())
        claims.now += TRAIL_EVERY / 10
    assert 3 <= kinds.count(ScanKind.TRAILING) <= 4
    assert ScanKind.THOROUGH not in kinds


def test_a_trailing_scan_starts_where_the_hint_stood(claims: Claims) -> None:
    """Rule 11: a row that commits up to 3 s late is found."""
    for step in range(1, 8):
        claims.now += TRAIL_EVERY
        plan, _ = claims.scan(*jobs(step * 100))
        assert plan.kind is ScanKind.TRAILING
        start = dict(zip(plan.priorities, plan.positions, strict=True))[0]
        behind = int(TRAIL_BEHIND / TRAIL_EVERY)
        assert start <= max(5, (step - behind) * 100 + 1)
        assert step < 6 or start > 100


def test_a_trailing_scan_is_not_ahead_of_the_hint(claims: Claims) -> None:
    """Rule 11: where a notification has pulled it back to since."""
    claims.now += TRAIL_EVERY
    claims.scan(*jobs(500))
    claims.hints.noticed(0, 2)
    claims.now += TRAIL_EVERY
    plan, _ = claims.scan()
    assert plan == Plan(ScanKind.TRAILING, [5, 0], [10, 2])


def test_a_cut_trailing_scan_sets_the_hint_back(claims: Claims) -> None:
    """Rule 11: when a scan behind the hint ends at its limit, more may wait between its end and the hint."""
    claims.scan(*jobs(500))
    claims.now += TRAIL_EVERY
    plan, _ = claims.scan(*jobs(*range(20, 30)))
    assert plan.kind is ScanKind.TRAILING
    assert claims.scan()[0] == Plan(ScanKind.HINTED, [5, 0], [10, 30])


def test_a_wake_up_during_a_scan_is_not_forgotten_with_its_end(claims: Claims) -> None:
    """Rule 11: the scan began before that job was committed, and ended behind it."""
    plan = claims.hints.plan(claims.now)
    claims.hints.noticed(0, 20)
    claims.hints.claimed(plan, jobs(15, 30), 10, claims.now, TOOK)
    assert claims.scan()[0] == Plan(ScanKind.HINTED, [5, 0], [10, 20])
    # that one has seen it, whether or not it could take it: the trailing scans are for what is left
    claims.scan(*jobs(40))
    assert claims.scan()[0] == Plan(ScanKind.HINTED, [5, 0], [10, 41])


def test_what_a_scan_took_was_no_news(claims: Claims) -> None:
    """Rule 9: the usual case, in which the hint goes on."""
    plan = claims.hints.plan(claims.now)
    claims.hints.noticed(0, 20)
    claims.hints.claimed(plan, jobs(15, 20, 30), 10, claims.now, TOOK)
    assert claims.scan()[0] == Plan(ScanKind.HINTED, [5, 0], [10, 31])


def test_a_short_trailing_scan_leaves_the_hint(claims: Claims) -> None:
    """Rule 11: it has seen everything up to the hint."""
    claims.scan(*jobs(500))
    claims.now += TRAIL_EVERY
    claims.scan(*jobs(20))
    assert claims.scan()[0] == Plan(ScanKind.HINTED, [5, 0], [10, 501])


def test_after_a_cut_thorough_scan_a_short_one_is_followed_up() -> None:
    """Rule 11: it saw nothing of lower priorities, which must not wait for the next thorough scan by the clock."""
    claims = Claims()
    assert claims.scan(*jobs(*range(10), priority=9), took=10.0) == (Plan(ScanKind.THOROUGH), False)
    assert not claims.scan(*jobs(*range(10, 20), priority=9))[1]
    plan, follow = claims.scan(*jobs(20, priority=9))
    assert plan.kind is not ScanKind.THOROUGH
    assert follow
    assert not claims.scan(*jobs(5), thorough=True)[1]
    assert not claims.scan()[1]


def test_a_complete_thorough_scan_needs_no_follow_up(claims: Claims) -> None:
    """Rule 9: or every claim that comes back short would walk the dead entries."""
    assert not claims.scan()[1]
    assert not claims.scan(*jobs(20))[1]


def test_a_priority_of_jobs_for_others_is_not_walked_by_every_scan() -> None:
    """Rule 10: hundreds of thousands of a type that this runner does not know; the thorough scans are left, and notices."""
    claims = Claims()
    claims.scan(*jobs(7, 9, priority=5), *jobs(3, 4), took=0.5)
    claims.scan(*jobs(10, priority=5), *jobs(5), took=0.5)
    claims.hints.plan(claims.now)  # the trailing scan that is due
    claims.hints.noticed(9, 1)
    assert claims.scan(took=0.09)[0].priorities == [9, 5, 0]
    assert claims.scan(took=0.1)[0].priorities == [9, 5, 0], "less is worth it"
    assert claims.scan(took=0.09)[0].priorities == [9, 5, 0], "one alone may have waited for a lock"
    assert claims.scan(took=0.1)[0].priorities == [9, 5, 0]
    assert claims.scan(took=0.1)[0].priorities == [9, 5, 0]
    assert claims.scan(*jobs(20))[0].priorities == [0], "one hint stays"
    claims.hints.noticed(9, 500)
    assert claims.scan(*jobs(21))[0].positions == [500, 21]


def test_a_costly_scan_that_found_something_keeps_its_hints(claims: Claims) -> None:
    claims.scan(*jobs(10, priority=5), *jobs(5), took=2.0)
    assert claims.scan()[0].priorities == [5, 0]


def test_no_hint_is_beyond_the_last_position(claims: Claims) -> None:
    """Rule 21: a claim from there would be refused."""
    claims.scan(*jobs(2**63 - 1))
    assert claims.scan()[0].positions[-1] == 2**63 - 1


def test_sixteen_priorities_have_a_hint() -> None:
    """Rule 10: the ones used last; thorough scans find the rest."""
    claims = Claims()
    for priority in range(20):
        claims.scan(*jobs(priority + 1, priority=priority), took=1.0)
    plan, _ = claims.scan()
    assert plan.priorities == list(range(19, 19 - MAX_PRIORITIES, -1))


def test_the_hint_that_was_used_longest_ago_makes_way() -> None:
    """Rule 10: not the one that was known first."""
    claims = Claims()
    for priority in (*range(MAX_PRIORITIES), 0, 99):
        claims.scan(*jobs(priority + 1, priority=priority), took=1.0)
    assert claims.scan()[0].priorities == [99, *range(MAX_PRIORITIES - 1, 1, -1), 0]


def test_hints_of_used_priorities_stay() -> None:
    """Rule 10: a priority that jobs keep coming in is not forgotten for others."""
    claims = Claims()
    for priority in range(20):
        claims.scan(
            *jobs(priority + 1, priority=priority), *jobs(priority + 1, priority=-1), took=1.0
        )
    assert -1 in claims.scan()[0].priorities


def test_announcements_of_all_priorities_make_no_scan_long() -> None:
    """Rule 10: whoever may use the database can announce what it likes."""
    claims = Claims()
    claims.scan(*jobs(1), took=1.0)
    for priority in range(-1000, 1000):
        claims.hints.noticed(priority, 1)
    assert len(claims.scan()[0].priorities) == 4 * MAX_PRIORITIES
    assert len(claims.scan()[0].priorities) == MAX_PRIORITIES


# When nothing was heard for a while --------------------------------------------------------------


def test_what_was_missed_is_looked_for_before_hints_are_trusted(claims: Claims) -> None:
    claims.hints.missed()
    claims.hints.noticed(5, 20)
    assert claims.kind() is ScanKind.THOROUGH
    assert claims.kind() is ScanKind.HINTED


def test_a_thorough_scan_that_broke_off_is_still_owed(claims: Claims) -> None:
    claims.hints.missed()
    claims.hints.plan(claims.now)
    assert claims.kind() is ScanKind.THOROUGH
    assert claims.kind() is ScanKind.HINTED


def test_what_was_missed_while_a_thorough_scan_was_on_its_way_is_owed_another(
    claims: Claims,
) -> None:
    plan = claims.hints.plan(claims.now, thorough=True)
    claims.hints.missed()
    claims.hints.claimed(plan, [], 10, claims.now, 10.0)
    assert claims.kind() is ScanKind.THOROUGH
    assert claims.kind() is ScanKind.HINTED
