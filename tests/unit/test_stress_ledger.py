"""The bookkeeping of the stress test: what counts as lost, and what does not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from random import Random

import pytest

from examples.stress_test.fleet import kill_moments
from examples.stress_test.game import (
    ExploreArea,
    GameJob,
    GymBattle,
    TrainPokemon,
    catch_chance,
    win_chance,
)
from examples.stress_test.ledger import Accounts, Fate, Ledger
from examples.stress_test.messages import Finished, Started
from examples.stress_test.options import parse
from examples.stress_test.produce import requests

EXPLORE = ExploreArea(trainer="Ash", area="Mt. Moon")
TRAIN = TrainPokemon(pokemon="pokemon 1")
BATTLE = GymBattle(trainer="Ash", gym="Pewter")


def settle(
    jobs: Mapping[int, GameJob],
    fates: Mapping[int, tuple[str, int, int]],
    badges: Iterable[int] = (),
    starts: Mapping[int, float] | None = None,
    rescues: Iterable[Started] = (),
) -> Accounts:
    """Settle jobs that were committed in the order of their ids."""
    ledger = Ledger()
    for job_id, job in jobs.items():
        ledger.committed([(job, job_id)], due=100.0 + job_id)
    for job_id, at in (starts or {}).items():
        ledger.hear(Started(job_id, at))
    for started in rescues:
        ledger.hear(started)
    found = [Fate(job_id, jobs[job_id].queue, *fate) for job_id, fate in fates.items()]
    return ledger.settle(found, badges, 2.0)


def test_job_without_a_fate_is_lost() -> None:
    accounts = settle({1: EXPLORE, 2: EXPLORE}, {2: ("completed", 0, 0)})
    assert accounts.lost == [1]
    assert not accounts.honest
    assert accounts.queues["exploration"].lost == 1
    assert accounts.queues["exploration"].per_second == 0.5


@pytest.mark.parametrize("fate", ["completed", "dead"])
@pytest.mark.parametrize("rival", [1, 3])
def test_training_that_made_way_is_deduplicated(fate: str, rival: int) -> None:
    jobs: dict[int, GameJob] = {rival: TRAIN, 2: TRAIN}
    accounts = settle(jobs, {rival: (fate, 0, 0)}, starts={rival: 110.0, 2: 105.0})
    assert accounts.honest
    account = accounts.queues["training"]
    assert (account.enqueued, account.deduplicated, account.lost) == (1, 1, 0)


def test_training_may_make_way_for_one_that_waits() -> None:
    assert settle({1: TRAIN, 2: TRAIN}, {1: ("waiting", 0, 0)}).honest


def test_training_is_lost_when_no_identical_one_was_started_afterwards() -> None:
    done = ("completed", 0, 0)
    assert settle({1: TRAIN, 2: TRAIN}, {1: done}, starts={1: 101.5, 2: 105.0}).lost == [2]
    other = TrainPokemon(pokemon="pokemon 2")
    assert settle({1: TRAIN, 2: other}, {2: done}, starts={2: 110.0}).lost == [1]
    assert settle({1: TRAIN, 2: TRAIN}, {}, starts={1: 110.0, 2: 110.0}).lost == [1, 2]


def test_final_failure_is_not_a_retry_but_a_failure_before_a_crash_is() -> None:
    account = settle({1: BATTLE}, {1: ("dead", BATTLE.max_attempts, 1)}).queues["gym_battles"]
    assert (account.retried, account.rescued) == (BATTLE.max_attempts - 1, 1)
    account = settle({1: BATTLE}, {1: ("dead", 2, BATTLE.max_crashes)}).queues["gym_battles"]
    assert (account.retried, account.rescued) == (2, BATTLE.max_crashes)


def test_rescue_counts_however_often_the_job_failed_since() -> None:
    """The row forgets rescues when an attempt fails; whoever started that one has told of them."""
    told = [Started(1, 110.0, retries, crashes) for retries, crashes in [(0, 1), (0, 2), (1, 1)]]
    told.append(Started(1, 109.0, 0, 1))  # an earlier one, told later
    account = settle({1: EXPLORE}, {1: ("completed", 2, 0)}, rescues=told).queues["exploration"]
    assert (account.retried, account.rescued) == (2, 3)
    account = settle({1: EXPLORE}, {1: ("waiting", 1, 2)}, rescues=told).queues["exploration"]
    assert account.rescued == 4, "one more, after which nobody has started it"
    dead = ("dead", EXPLORE.max_attempts, 1)
    told = [Started(1, 110.0, EXPLORE.max_attempts - 1, 1)]
    account = settle({1: EXPLORE}, {1: dead}, rescues=told).queues["exploration"]
    assert account.rescued == 1, "the one that its last attempt told of"


def test_rescue_never_counts_backwards() -> None:
    ledger = Ledger()
    seen = []
    ledger.hear(Started(1, 110.0, 0, 1))
    seen.append(ledger.rescued()["exploration"])
    ledger.committed([(EXPLORE, 1)], due=100.0)
    for retries, crashes in [(0, 1), (0, 2), (1, 0), (1, 1), (2, 0)]:
        ledger.hear(Started(1, 111.0, retries, crashes))
        seen.append(ledger.rescued()["exploration"])
    assert seen == [0, 1, 2, 2, 3, 3]


def test_each_completed_battle_has_one_badge_and_no_other_has() -> None:
    done, waits = ("completed", 0, 0), ("waiting", 1, 0)
    assert settle({1: BATTLE, 2: BATTLE}, {1: done, 2: waits}, [1]).honest
    assert settle({1: BATTLE, 2: BATTLE}, {1: done, 2: waits}, [1, 1, 2]).misjudged == [1, 2]
    assert settle({1: BATTLE}, {1: done}).misjudged == [1]


def test_job_of_a_rolled_back_transaction_must_not_exist() -> None:
    ledger = Ledger()
    ledger.rolled_back([(EXPLORE, 7), (TRAIN, None)])
    assert ledger.settle([], [], 1.0).honest
    assert ledger.settle([Fate(7, "exploration", "completed", 0, 0)], [], 1.0).ghosts == [7]


def test_pickup_is_measured_at_the_first_start() -> None:
    ledger = Ledger()
    for number in range(1, 101):
        ledger.hear(Started(number, 50.0 + number / 1000))
        ledger.hear(Finished(number))
        ledger.hear(Started(number, 99.0))
        ledger.committed([(EXPLORE, number)], due=50.0)
    account = ledger.settle([], [], 1.0).queues["exploration"]
    assert (account.pickup_p50_ms, account.pickup_p99_ms) == (50.0, 99.0)


def test_requests_keep_the_shares_and_are_the_same_for_a_seed() -> None:
    options = parse(["--jobs", "1000", "--seed", "1"])
    game = list(requests(options))
    assert game == list(requests(options))
    names = [job.job_name for request in game for job in request.jobs]
    assert [names.count(name) for name in ("catch_pokemon", "train_pokemon")] == [400, 250]
    assert any(request.rolls_back for request in game)
    assert any(len(request.jobs) == 1 for request in game)


def test_kills_come_before_half_of_the_attempts_have_ended() -> None:
    moments = kill_moments(Random(1), parse(["--jobs", "100", "--kill-workers", "20"]))
    assert len(moments) == 20
    assert moments == sorted(moments)
    assert moments[-1] <= 50


def test_experience_and_badges_help() -> None:
    assert catch_chance(5, 90) > catch_chance(5, 10) > catch_chance(60, 0) - 0.001
    assert win_chance(8) > win_chance(0)
