"""The engines against each other: any sequence of operations has the same effects on PostgreSQL as in memory (FAULTS 25).

WORKERS_MODEL_EXAMPLES=2000 runs that many random sequences; without it a few fixed ones are run.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar, cast

import msgspec
import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.storage.engines import Engine, MemoryEngine, PostgresEngine, Runner, ids, mail
from workers.job import ClaimedJob, JobRecord, JobState, NewJob
from workers.lifecycle import Archive, Bury, Delete, Release, Retry, Transition, Wait
from workers.storage.base import Guard, Settled, Settlement
from workers.storage.postgres.statements import statement

T = TypeVar("T")

EXAMPLES = int(os.environ.get("WORKERS_MODEL_EXAMPLES", "0"))

# Time moves in steps of which no sum comes near the engines' own thresholds: the lease, two thirds of it, what is left of
# it; and the steps are so large that the time which a run takes by itself makes no difference.
STEP = 1000.0
LEASE = 14.5 * STEP
DECLARED = {"mail": "default", "report": "other"}
QUEUES = ["default", "other"]
TYPES = ("mail", "report")

new_jobs = st.builds(
    NewJob,
    job_type=st.sampled_from(["mail", "mail", "mail", "mail", "report", "unknown"]),
    queue=st.sampled_from(["default", "default", "default", "default", "other", None]),
    data=st.sampled_from(['{"number": 1}', '{"number": 2}']),
    priority=st.integers(-1, 1),
    deduplicated=st.booleans(),
    delay=st.sampled_from([None, None, None, None, 2.5 * STEP, 7.5 * STEP]),
)
transitions: st.SearchStrategy[Transition] = st.sampled_from(
    [
        Delete(),
        Archive("completed"),
        Archive("cancelled", "no"),
        Retry(0.0, "boom"),
        Retry(2.5 * STEP, "boom"),
        Wait(2.5 * STEP),
        Wait(0.0),
        Release(),
        Bury("over", "boom"),
        Bury("crashed", attempted=False),
    ]
)
picks = st.integers(0, 10**6)
#: Among what a runner has ever held: mostly what it claimed last.
recent = st.integers(-6, -1) | picks


LIST_JOBS = statement("list_jobs")
SHOWN = (
    "id",
    "state",
    "job_type",
    "queue",
    "priority",
    "data",
    "retries",
    "crashes",
    "last_error",
    "reason",
)


def at_once(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that waits for nothing: the memory engine's."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    raise AssertionError("it waits")


class Pair:
    """A runner on both engines, and what it believes to hold: claims in memory and on PostgreSQL, in step."""

    def __init__(self, runners: list[Runner]) -> None:
        self.runners = runners
        self.linked = True
        self.held: list[tuple[ClaimedJob, ClaimedJob]] = []


class Machine(RuleBasedStateMachine):
    """Each rule does the same on both engines and compares what they say; `numbers` maps their ids to one numbering."""

    portal: BlockingPortal
    postgres: PostgresEngine

    def __init__(self) -> None:
        super().__init__()
        self.portal.call(self.postgres.reset)
        self.memory = MemoryEngine()
        self.engines: list[Engine] = [self.memory, self.postgres]
        self.numbers: list[dict[int, int]] = [{}, {}]
        self.pairs: list[Pair] = []
        self.tokens = 0
        self.moved = time.monotonic()
        for _ in range(2):
            self.runner()
        self.enqueue([mail(1), mail(1, deduplicated=True), mail(2, deduplicated=True)])

    # ------------------------------------------------------------------------------------------------------------ helpers

    def both(self, work: Callable[[int], T]) -> list[T]:
        """What `work` returns for the memory engine and for PostgreSQL; an operation takes a moment."""
        self.memory.now += time.monotonic() - self.moved  # PostgreSQL's time passes by itself
        self.moved = time.monotonic()
        return [work(0), work(1)]

    def wait(self, awaitable: Awaitable[T]) -> T:
        async def waiting() -> T:
            return await awaitable

        return self.portal.call(waiting)

    def same(self, results: list[Any]) -> Any:
        assert results[0] == results[1]
        return results[0]

    def number(self, engine: int, job_id: int) -> int:
        return self.numbers[engine][job_id]

    def same_settled(self, results: list[Settled]) -> None:
        for name in ("written", "superseded"):
            self.same(
                [
                    {self.number(engine, job_id) for job_id in getattr(result, name)}
                    for engine, result in enumerate(results)
                ]
            )

    def holder(self, which: int) -> Pair:
        holders = [pair for pair in self.pairs if pair.held]
        return holders[which % len(holders)]

    def holding(self) -> bool:
        return any(pair.held for pair in self.pairs)

    def pick(self, which: int, *, linked: bool = True) -> Pair:
        chosen = [pair for pair in self.pairs if pair.linked == linked]
        return chosen[which % len(chosen)]

    def linked(self) -> bool:
        return any(pair.linked for pair in self.pairs)

    # -------------------------------------------------------------------------------------------------------------- rules

    @rule()
    @precondition(lambda self: len(self.pairs) < 5)
    def runner(self) -> None:
        runners = self.both(
            lambda engine: self.engines[engine].runner(f"r{len(self.pairs)}", lease=LEASE)
        )
        self.pairs.append(Pair(runners))

    @rule(jobs=st.lists(new_jobs, min_size=1, max_size=6))
    def enqueue(self, jobs: list[NewJob]) -> None:
        results = self.both(lambda engine: self.wait(self.engines[engine].storage.enqueue(jobs)))
        for in_memory, in_postgres in zip(*results, strict=True):
            assert (in_memory is None) == (in_postgres is None)
            if in_memory is not None and in_postgres is not None:
                number = len(self.numbers[0])
                self.numbers[0][in_memory] = self.numbers[1][in_postgres] = number

    @rule(
        which=picks,
        limit=st.integers(1, 6),
        queue=st.sampled_from(["default", "default", "default", "other"]),
        suspects=st.sampled_from([0, 0, 0, 1, 9]),
    )
    def claim(self, which: int, limit: int, queue: str, suspects: int) -> None:
        pair = self.pairs[which % len(self.pairs)]
        self.tokens += 1
        claims = self.both(
            lambda engine: self.wait(
                pair.runners[engine].claim(
                    limit, types=TYPES, queue=queue, token=self.tokens, suspects=suspects
                )
            )
        )
        self.same([claim.complete for claim in claims])
        self.same(
            [[self.shown(engine, job) for job in claim.jobs] for engine, claim in enumerate(claims)]
        )
        pair.held += zip(claims[0].jobs, claims[1].jobs, strict=True)

    def shown(self, engine: int, job: ClaimedJob) -> tuple[Any, ...]:
        return (
            self.number(engine, job.id),
            *(getattr(job, name) for name in ClaimedJob.__struct_fields__ if name != "id"),
        )

    @rule(
        which=picks,
        chosen=st.lists(st.tuples(recent, transitions), min_size=1, max_size=6),
        close=st.booleans(),
    )
    @precondition(holding)
    def settle(self, which: int, chosen: list[tuple[int, Transition]], close: bool) -> None:
        """Including what was settled before, or taken away: stale writes must change nothing on both."""
        pair = self.holder(which)
        # in id order, each with a delay of its own: jobs that are due at the same moment have no order
        jobs = {index % len(pair.held): transition for index, transition in chosen}
        left = {job.token for index, (job, _) in enumerate(pair.held) if index not in jobs}
        closed = {pair.held[index][0].token for index in jobs} - left if close else set()
        settled = self.both(lambda engine: self.wait(self.settled(pair, engine, jobs, closed)))
        self.same_settled(settled)

    async def settled(
        self, pair: Pair, engine: int, jobs: dict[int, Transition], closed: set[int]
    ) -> Settled:
        runner, items = pair.runners[engine], []
        for index, transition in jobs.items():
            job = pair.held[index][engine]
            if isinstance(transition, Retry | Wait) and transition.delay:
                delay = transition.delay + self.number(engine, job.id) / 1000
                transition = msgspec.structs.replace(transition, delay=delay)
            items.append(Settlement(Guard(job.id, job.token), job.deduplicated, transition))
        return await runner.engine.storage.settle(runner.session, items, closed)

    @rule(which=picks, chosen=st.lists(recent, min_size=1, max_size=6))
    @precondition(holding)
    def complete(self, which: int, chosen: list[int]) -> None:
        pair = self.holder(which)
        indexes = {index % len(pair.held) for index in chosen}
        written = self.both(
            lambda engine: self.wait(
                pair.runners[engine].complete(pair.held[index][engine] for index in indexes)
            )
        )
        self.same(
            [
                {self.number(engine, job_id) for job_id in result}
                for engine, result in enumerate(written)
            ]
        )

    @rule(which=picks, token=picks)
    def release_claim(self, which: int, token: int) -> None:
        pair = self.pairs[which % len(self.pairs)]
        token %= self.tokens + 1
        self.same_settled(
            self.both(
                lambda engine: self.wait(
                    self.engines[engine].storage.release_claim(pair.runners[engine].session, token)
                )
            )
        )

    @rule(which=picks, chosen=st.lists(recent, max_size=4))
    @precondition(linked)
    def release(self, which: int, chosen: list[int]) -> None:
        pair = self.pick(which)
        held = [pair.held[index % len(pair.held)] for index in chosen] if pair.held else []
        guards = [
            [
                Guard(both[engine].id, both[engine].token)
                for both in {id(b): b for b in held}.values()
            ]
            for engine in (0, 1)
        ]
        released = self.both(lambda engine: pair.runners[engine].control.release(guards[engine]))
        self.same_settled(released)

    @rule(which=picks)
    @precondition(linked)
    def maintain(self, which: int) -> None:
        pair = self.pick(which)
        found = self.both(
            lambda engine: pair.runners[engine].maintain(DECLARED, QUEUES, lease=LEASE)
        )
        self.same([(each.alive, each.rescue, set(each.suspects)) for each in found])
        self.same([{(wake.queue, wake.priority) for wake in each.wakes} for each in found])

    @rule(which=picks)
    @precondition(linked)
    def rescue(self, which: int) -> None:
        pair = self.pick(which)
        found = self.both(lambda engine: pair.runners[engine].control.rescue())
        self.same([sorted((dead.name, dead.reason, dead.jobs) for dead in each) for each in found])

    @rule(which=picks)
    @precondition(linked)
    def crash(self, which: int) -> None:
        pair = self.pick(which)
        self.both(lambda engine: self.wait(pair.runners[engine].crash()))
        pair.linked = False

    @rule(which=picks)
    @precondition(lambda self: any(not pair.linked for pair in self.pairs))
    def recover(self, which: int) -> None:
        pair = self.pick(which, linked=False)
        self.same(self.both(lambda engine: pair.runners[engine].control.recover(LEASE)))
        pair.linked = True
        self.postgres.now += 5  # a new link to PostgreSQL would not judge others before

    @rule(which=picks)
    @precondition(lambda self: len(self.pairs) > 1 and self.linked())
    def close(self, which: int) -> None:
        pair = self.pick(which)
        self.same_settled(self.both(lambda engine: pair.runners[engine].control.close()))
        self.pairs.remove(pair)

    @rule(steps=st.sampled_from([1, 1, 3, 8]))
    def advance(self, steps: int) -> None:
        for engine in self.engines:
            engine.advance(steps * STEP)

    @rule(chosen=st.lists(picks, max_size=4))
    def requeue(self, chosen: list[int]) -> None:
        numbers = {pick % len(self.numbers[0]) for pick in chosen} if self.numbers[0] else set()
        back = self.both(
            lambda engine: self.wait(
                self.engines[engine].storage.requeue(
                    [job_id for job_id, number in self.numbers[engine].items() if number in numbers]
                )
            )
        )
        self.same(
            [
                [self.number(engine, job_id) for job_id in result]
                for engine, result in enumerate(back)
            ]
        )

    # ------------------------------------------------------------------------------------------------------- what must hold

    @invariant()
    def jobs_are_the_same(self) -> None:
        everything = {"state": None, "id": None, "after": -1, "limit": 10_000}
        rows = self.postgres.conn.execute(LIST_JOBS, everything).fetchall()
        in_postgres = [dict(zip(JobRecord.__struct_fields__, row, strict=True)) for row in rows]
        in_memory = [
            {name: getattr(job, name) for name in SHOWN}
            for state in JobState
            for job in at_once(self.memory.storage.list_jobs(state, limit=10_000))
        ]
        self.same(
            [
                {self.number(engine, job["id"]): [job[name] for name in SHOWN[1:]] for job in jobs}
                for engine, jobs in enumerate((in_memory, in_postgres))
            ]
        )

    @invariant()
    def claims_are_the_same(self) -> None:
        for pair in self.pairs:
            self.same(
                [
                    {
                        token: {self.number(engine, job_id) for job_id in held}
                        for token, held in self.engines[engine]
                        .claims_of(pair.runners[engine].session)
                        .items()
                    }
                    for engine in (0, 1)
                ]
            )

    @invariant()
    def no_two_identical_jobs_wait(self) -> None:
        query = (
            "SELECT count(*) FROM (SELECT FROM background_jobs WHERE deduplicated AND session_id IS NULL"
            " GROUP BY job_type, data, priority HAVING count(*) > 1) AS doubled"
        )
        assert self.postgres.conn.execute(query).fetchone() == (0,)

    def teardown(self) -> None:
        """What waits is found by claims that start at the hints, too, without ever asking for a thorough scan."""
        pair = Pair(self.both(lambda engine: self.engines[engine].runner("last", lease=LEASE)))
        for queue in QUEUES:
            waiting, found = self.wait(pair.runners[0].take(1000, types=TYPES, queue=queue)), []
            for _ in range(len(waiting) + 3):
                self.postgres.now += 0.1
                found += self.wait(
                    pair.runners[1].take(3, types=TYPES, queue=queue, thorough=False)
                )
            assert {self.number(0, job.id) for job in waiting} == {
                self.number(1, job.id) for job in found
            }
            assert len(set(ids(found))) == len(found)
        for runner in [both.runners[1] for both in self.pairs] + [pair.runners[1]]:
            runner.control.abandon()


@pytest.fixture
def machine(database_url: str, warm_server: None) -> Iterator[type[Machine]]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(PostgresEngine.opened(database_url)) as engine,
    ):
        yield type("ThisMachine", (Machine,), {"portal": portal, "postgres": engine})


def test_engines_agree(machine: type[Machine]) -> None:
    """FAULTS 25: the model test."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES or 15,
            stateful_step_count=40,
            deadline=None,
            derandomize=not EXAMPLES,
            database=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
            print_blob=True,
        ),
    )
