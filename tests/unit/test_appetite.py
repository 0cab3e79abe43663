"""How much one claim may bring, in jobs and in bytes."""

from __future__ import annotations

from workers.job import ClaimedJob
from workers.runtime.appetite import MOST_BYTES, Appetite


def jobs(count: int, size: int) -> list[ClaimedJob]:
    return [ClaimedJob(n, "mail", "default", 0, "x" * size, 0, 0, False, 1) for n in range(count)]


def test_small_payloads_are_not_bounded_but_by_number() -> None:
    appetite = Appetite(500)
    assert appetite.bound(10_000) == 500
    appetite.took(jobs(500, 100))
    assert appetite.bound(500) == 500


def test_large_payloads_make_small_claims() -> None:
    appetite = Appetite(500)
    appetite.took(jobs(10, MOST_BYTES // 20))
    assert appetite.bound(500) == 20
    appetite.took(jobs(1, 2 * MOST_BYTES))
    assert appetite.bound(500) == 1


def test_the_bound_rises_again_with_smaller_ones() -> None:
    appetite = Appetite(500)
    appetite.took(jobs(1, MOST_BYTES))
    bounds = []
    for _ in range(30):
        appetite.took(jobs(1, 10))
        bounds.append(appetite.bound(500))
    assert bounds == sorted(bounds)
    assert bounds[0] == 1
    assert bounds[-1] == 500


def test_a_claim_that_fails_is_not_repeated_as_it_was() -> None:
    appetite = Appetite(500)
    asked = []
    for _ in range(12):
        asked.append(appetite.bound(500))
        appetite.choked(asked[-1])
    assert asked[:3] == [500, 250, 125]
    assert asked[-1] == 1


def test_after_a_failure_it_doubles() -> None:
    appetite = Appetite(100)
    appetite.choked(8)
    asked = []
    for _ in range(6):
        asked.append(appetite.bound(100))
        appetite.took([])
    assert asked == [4, 8, 16, 32, 64, 100]
