"""The game: five job types on five queues.

A trainer catches, trains and heals pokemon, battles in gyms and explores. Each job takes its time, some fail by bad luck
and are tried again, and a battle's badge is won exactly once, whatever happens to the process that fights it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from psycopg_pool import AsyncConnectionPool

from workers import BackgroundJob, Fixed, Runner, current_job

#: Where `GymBattle` keeps its badges. No constraint keeps a job from winning twice: the report would show it.
SCHEMA = """
CREATE TABLE IF NOT EXISTS stress_badges (
    job_id  bigint NOT NULL,
    trainer text   NOT NULL,
    gym     text   NOT NULL
)
"""

DISCOVERIES = ("a Moon Stone", "an old path", "three berries", "a hidden cave", "a rare candy")


class BadLuckError(Exception):
    """The job did not succeed this time."""


@dataclass(frozen=True, slots=True)
class World:
    """What every job is given: the context of the runner."""

    speed: float = 1.0
    seed: int = 0
    failures: bool = False
    tell: Callable[[str], None] = field(default=lambda text: None)

    def luck(self, job: GameJob) -> Random:
        """Return the dice for this attempt: the same job rolls the same in every run with this seed."""
        return Random(f"{self.seed} {job!r} {current_job().attempt}")

    async def spend(self, seconds: float, luck: Random) -> None:
        """Let time pass. Under --failures it may end badly."""
        await asyncio.sleep(seconds / self.speed)
        if self.failures and luck.random() < 0.4:
            raise BadLuckError("Team Rocket blew everything up")


class GameJob(BackgroundJob[World]):
    """What the five have in common. Settings are inherited."""

    backoff = Fixed(1.0)  # a failed attempt is due again after a second
    max_attempts = 6  # then it is a dead letter
    archive = True  # completed jobs are kept in archived_jobs, which is how the report counts them


class CatchPokemon(GameJob):
    """Throw a ball. High levels are hard to catch; experience helps."""

    queue = "field_work"
    priority = 10

    trainer: str
    pokemon: str
    level: int
    experience: int

    async def run(self, ctx: World) -> None:
        luck = ctx.luck(self)
        await ctx.spend(luck.uniform(0.1, 0.8), luck)
        if luck.random() > catch_chance(self.level, self.experience):
            raise BadLuckError(f"{self.pokemon} broke free")
        ctx.tell(f"{self.trainer} caught {self.pokemon}, level {self.level}")


class TrainPokemon(GameJob):
    """Train one pokemon. Deduplicated: asking twice before it has begun is asking once."""

    queue = "training"
    priority = 5
    deduplicated = True

    pokemon: str

    async def run(self, ctx: World) -> None:
        luck = ctx.luck(self)
        await ctx.spend(luck.uniform(0.2, 1.5), luck)


class HealPokemon(GameJob):
    """Heal a team: the larger, the longer."""

    queue = "pokemon_center"
    priority = 15

    trainer: str
    team: list[str]

    async def run(self, ctx: World) -> None:
        await ctx.spend(0.2 + 0.15 * len(self.team), ctx.luck(self))


class GymBattle(GameJob):
    """Fight for a badge. Transactional: the badge and the job's completion commit together, so it is won exactly once."""

    queue = "gym_battles"
    priority = 20
    transactional = True

    trainer: str
    gym: str

    async def run(self, ctx: World) -> None:
        job, luck = current_job(), ctx.luck(self)
        await ctx.spend(luck.uniform(1, 3), luck)
        badges = await job.connection.execute(
            "SELECT count(DISTINCT gym) FROM stress_badges WHERE trainer = %s", [self.trainer]
        )
        (held,) = await badges.fetchone()
        if luck.random() > win_chance(held):
            raise BadLuckError(f"{self.trainer} lost in {self.gym}")
        await job.connection.execute(
            "INSERT INTO stress_badges VALUES (%s, %s, %s)", [job.id, self.trainer, self.gym]
        )
        ctx.tell(f"{self.trainer}, who had {held} badges, won in {self.gym}")


class ExploreArea(GameJob):
    """Look around; there is always something to discover."""

    queue = "exploration"
    priority = 3

    trainer: str
    area: str

    async def run(self, ctx: World) -> None:
        luck = ctx.luck(self)
        await ctx.spend(luck.uniform(0.3, 1.2), luck)
        found = luck.sample(DISCOVERIES, luck.randint(2, 4))
        ctx.tell(f"{self.trainer} found {', '.join(found[:-1])} and {found[-1]} in {self.area}")


#: Every job type, with its share of the jobs in percent.
SHARES: dict[type[GameJob], int] = {
    CatchPokemon: 40,
    TrainPokemon: 25,
    HealPokemon: 15,
    GymBattle: 10,
    ExploreArea: 10,
}
QUEUES = [kind.queue for kind in SHARES]


def catch_chance(level: int, experience: int) -> float:
    """Return the chance that one ball is enough, from 0.6 to 0.95."""
    return min(0.95, max(0.6, 0.7 + experience / 250 - level / 300))


def win_chance(badges: int) -> float:
    """Return the chance to win a battle: from 0.6 without a badge to 0.92 with all eight."""
    return 0.6 + 0.04 * min(badges, 8)


def make_runner(
    pool: AsyncConnectionPool | str, world: World, *, workers: int, name: str
) -> Runner[World]:
    """Return a runner for the whole game; `workers` is the size of its largest queues."""
    runner = Runner(pool, world, name=name)
    for kind in SHARES:
        runner.register_job_type(kind)
    half, quarter = max(1, workers // 2), max(1, workers // 4)
    return (
        runner.configure_queue("field_work", num_workers=workers, poll_interval=0.05)
        .configure_queue("training", num_workers=half, poll_interval=0.1)
        .configure_queue("pokemon_center", num_workers=quarter, poll_interval=0.1)
        .configure_queue("gym_battles", num_workers=2, poll_interval=0.2)
        .configure_queue("exploration", num_workers=workers, poll_interval=0.15)
    )
