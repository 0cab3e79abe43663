"""What a runner has in its hands, and what it may forget. Rules 2 and 3."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from workers.job import ClaimedJob
from workers.runtime.ledger import Ledger
from workers.storage.base import Guard


def jobs(token: int, ids: Iterable[int]) -> list[ClaimedJob]:
    return [ClaimedJob(job_id, "mail", "default", 0, "{}", 0, 0, False, token) for job_id in ids]


def guards(token: int, *ids: int) -> list[Guard]:
    return [Guard(job_id, token) for job_id in ids]


def claim(ledger: Ledger, *ids: int, now: float = 0.0) -> int:
    token = ledger.begin_claim()
    ledger.claimed(token, jobs(token, ids), now)
    return token


def ledger_of_session(session: int = 7) -> Ledger:
    ledger = Ledger()
    ledger.begin_session(session)
    return ledger


def test_tokens_rise_across_sessions() -> None:
    """Rule 2: unique per claim, chosen before the statement; each belongs to the session it was used in."""
    ledger = ledger_of_session(7)
    first, second = ledger.begin_claim(), ledger.begin_claim()
    ledger.begin_session(8)
    third = ledger.begin_claim()
    assert first < second < third
    assert [ledger.session_of(token) for token in (first, second, third)] == [7, 7, 8]
    assert ledger.session == 8


def test_what_is_held() -> None:
    ledger = ledger_of_session()
    assert not ledger
    token = claim(ledger, 1, 2, 3, now=5.0)
    assert (len(ledger), ledger.claims, ledger.claimed_at(token)) == (3, 1, 5.0)
    assert ledger.settled(guards(token, 2)) == []
    assert len(ledger) == 2
    assert ledger.settled(guards(token, 1, 3)) == [token]
    assert not ledger
    claim(ledger)  # a claim that found nothing is no claim
    assert (len(ledger), ledger.claims) == (0, 1)


def test_a_token_closes_with_its_last_jobs() -> None:
    """Its row in the store may go when nothing is left of it, and not before."""
    ledger = ledger_of_session()
    token, other = claim(ledger, 1, 2, 3), claim(ledger, 4)
    assert ledger.closing(guards(token, 1, 2)) == []
    assert ledger.closing([*guards(token, 1, 2, 3), *guards(other, 4)]) == [token, other]
    ledger.settled(guards(token, 1, 2))
    assert ledger.closing(guards(token, 3)) == [token]


def test_who_waits_for_the_end_of_a_claim_is_called_once() -> None:
    ledger, called = Ledger(), []
    token = claim(ledger, 1, 2)
    ledger.when_settled(token, lambda: called.append(token))
    ledger.settled([Guard(1, token), Guard(2, token + 1)])
    assert called == []
    ledger.settled([Guard(2, token)])
    ledger.settled([Guard(2, token)])
    assert called == [token]


def test_settling_twice_is_harmless() -> None:
    """A write with unknown outcome is booked again after its retry."""
    ledger = ledger_of_session()
    token = claim(ledger, 1, 2)
    assert ledger.settled(guards(token, 1)) == []
    assert ledger.settled(guards(token, 1)) == []
    assert len(ledger) == 1
    assert ledger.settled(guards(token, 2, 2)) == [token]
    assert ledger.settled(guards(token, 2)) == []


def test_a_job_that_is_claimed_again_before_its_release_was_booked() -> None:
    """The reply of the release and that of the claim cross: the old token closes, the new one holds the job."""
    ledger = ledger_of_session()
    old = claim(ledger, 1)
    new = claim(ledger, 1)
    assert ledger.settled(guards(old, 1)) == [old]
    assert len(ledger) == 1
    assert ledger.settled(guards(new, 1)) == [new]


def test_the_claims_of_a_session_taken_for_dead_are_not_forgotten() -> None:
    """Rule 4: the sweep finds that session's jobs by its claims; to remove one would strand what is under it."""
    ledger = ledger_of_session(7)
    token = claim(ledger, 1, 2)
    ledger.begin_session(8)
    assert ledger.closing(guards(token, 1, 2)) == []
    assert ledger.settled(guards(token, 1, 2)) == []
    assert not ledger
    assert ledger.closing(guards(claim(ledger, 3), 3)) == [token + 1]


def test_news() -> None:
    """What may have changed what the store holds for this session; looks that found nothing have not."""
    ledger = ledger_of_session()
    seen = [ledger.news]
    for happen in (
        lambda: claim(ledger, 1),
        lambda: claim(ledger),
        lambda: ledger.unclaimed(ledger.begin_claim()),
        lambda: ledger.lost(ledger.begin_claim(), 0.0),
    ):
        happen()
        seen.append(ledger.news)
    assert [after - before for before, after in pairwise(seen)] == [1, 0, 1, 1]


def test_orphans() -> None:
    """Rule 2: what the store holds for this session and nobody here knows of, except what is on its way."""
    ledger = ledger_of_session()
    held = claim(ledger, 1, 2)
    lost = ledger.begin_claim()
    on_its_way = ledger.begin_claim()
    ledger.unclaimed(lost)
    ledger.settled(guards(held, 2))
    stored = {held: [1, 2], lost: [3, 4], on_its_way: [5]}
    assert ledger.orphans(stored) == [Guard(2, held), Guard(3, lost), Guard(4, lost)]
    ledger.claimed(on_its_way, jobs(on_its_way, [5]), 0.0)
    assert Guard(5, on_its_way) not in ledger.orphans(stored)


@given(st.lists(st.tuples(st.sampled_from(["claim", "settle", "session"]), st.integers(0, 9))))
def test_nothing_is_forgotten_while_jobs_are_left(steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: a token is emptied once, and only when none of its jobs is held."""
    ledger = ledger_of_session()
    open_claims: dict[int, set[int]] = {}
    emptied: list[int] = []
    next_id = 0
    for step, number in steps:
        if step == "claim":
            ids = range(next_id, next_id + number)
            next_id += number
            open_claims[claim(ledger, *ids)] = set(ids)
        elif step == "session":
            ledger.begin_session(ledger.session + 1)
        else:
            for token, held in list(open_claims.items())[: number + 1]:
                done = sorted(held)[: number + 1]
                held.difference_update(done)
                closed = ledger.settled(guards(token, *done))
                assert closed in ([], [token])
                assert not closed or not held
                emptied += closed
    assert len(emptied) == len(set(emptied))
    assert len(ledger) == sum(map(len, open_claims.values()))


def test_a_claim_is_on_its_way_until_it_is_held() -> None:
    """Rule 2: the session thread looks at any time, and gives back what is neither."""
    ledger = Ledger()
    token = ledger.begin_claim()
    seen: list[list[Guard]] = []

    class Jobs(list[ClaimedJob]):
        def __iter__(self) -> Any:  # the session thread looks just now
            seen.append(ledger.orphans({token: [1]}))
            return super().__iter__()

    ledger.claimed(
        token, Jobs([ClaimedJob(1, "mail", "default", 0, "{}", 0, 0, False, token)]), 0.0
    )
    assert seen == [[]]
