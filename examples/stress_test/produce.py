"""The players, whose requests enqueue jobs as those to a web application do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random
from typing import Any

import psycopg
from psycopg_pool import AsyncConnectionPool

from .game import (
    SHARES,
    CatchPokemon,
    ExploreArea,
    GameJob,
    GymBattle,
    HealPokemon,
    TrainPokemon,
)
from .ledger import Enqueued, Ledger
from .options import Options

__all__ = ["PLAYERS", "Producer", "Request", "requests"]

PLAYERS = 4

TRAINERS = ("Ash", "Misty", "Brock", "May", "Dawn", "Iris", "Serena", "Gary", "Lillie", "Goh")
POKEMON = ("Pidgey", "Rattata", "Zubat", "Geodude", "Magikarp", "Eevee", "Abra", "Snorlax", "Onix")
GYMS = ("Pewter", "Cerulean", "Vermilion", "Celadon", "Fuchsia", "Saffron", "Cinnabar", "Viridian")
AREAS = ("Viridian Forest", "Mt. Moon", "Rock Tunnel", "Seafoam Islands", "Victory Road")


@dataclass(frozen=True, slots=True)
class Request:
    """What one request asks for; `rolls_back`: the player's first try is called off."""

    jobs: list[GameJob]
    rolls_back: bool = False


def requests(options: Options) -> Iterator[Request]:
    """Yield the requests of the whole game, the same for the same seed."""
    dice = Random(options.seed)
    kinds = [kind for kind, share in SHARES.items() for _ in range(share)]
    plan = dice.sample(kinds, options.jobs % 100)
    for _ in range(options.jobs // 100):
        plan += dice.sample(kinds, 100)
    start = 0
    while start < len(plan):
        size = dice.choice((1, 1, 1, 1, 2, 3, 5, 20))
        jobs = [_make(kind, dice, options.jobs) for kind in plan[start : start + size]]
        yield Request(jobs, rolls_back=dice.random() < 0.05)
        start += size


class Producer:
    """Sends every request in a transaction and notes in the ledger what was committed."""

    def __init__(self, pool: AsyncConnectionPool, options: Options, ledger: Ledger) -> None:
        self._pool = pool
        self._requests = requests(options)
        self._seconds_per_job = 1 / options.rate if options.rate else 0.0
        self._ledger = ledger
        self._next = time.monotonic()
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Send all requests, or until `stop`."""
        async with asyncio.TaskGroup() as group:
            for _ in range(PLAYERS):
                group.create_task(self._play())

    def stop(self) -> None:
        """Send no more."""
        self._stopped.set()

    async def _play(self) -> None:
        for request in self._requests:
            if self._seconds_per_job:
                await self._pause(len(request.jobs))
            if self._stopped.is_set():
                return
            if request.rolls_back:
                await self._send_and_roll_back(request.jobs)
            await self._send(request.jobs)

    async def _pause(self, jobs: int) -> None:
        delay = self._next - time.monotonic()
        self._next += jobs * self._seconds_per_job
        try:
            async with asyncio.timeout(max(0.0, delay)):
                await self._stopped.wait()
        except TimeoutError:
            pass

    async def _send(self, jobs: list[GameJob]) -> None:
        """Handle one request. The jobs become visible with the commit, all of them or none."""
        async with self._pool.connection() as conn, conn.transaction():
            enqueued = await _enqueue(conn, jobs)
            due = time.monotonic()
        self._ledger.committed(enqueued, due)

    async def _send_and_roll_back(self, jobs: list[GameJob]) -> None:
        """Handle one request that fails in the end: none of its jobs may ever run."""
        async with self._pool.connection() as conn, conn.transaction(force_rollback=True):
            enqueued = await _enqueue(conn, jobs)
        self._ledger.rolled_back(enqueued)


async def _enqueue(conn: psycopg.AsyncConnection[Any], jobs: list[GameJob]) -> list[Enqueued]:
    """Enqueue `jobs`: a single one of its type by itself, several in a batch, which is one round trip."""
    by_kind: dict[type[GameJob], list[GameJob]] = {}
    for job in jobs:
        by_kind.setdefault(type(job), []).append(job)
    enqueued: list[Enqueued] = []
    for kind, same in by_kind.items():
        if len(same) == 1:
            ids = [await same[0].enqueue(conn)]
        else:
            ids = await kind.enqueue_batch(conn, same)
        enqueued += zip(same, ids, strict=True)
    return enqueued


def _make(kind: type[GameJob], dice: Random, jobs: int) -> GameJob:
    trainer, pokemon = dice.choice(TRAINERS), dice.choice(POKEMON)
    if kind is CatchPokemon:
        level, experience = dice.randint(1, 60), dice.randint(0, 100)
        return CatchPokemon(trainer=trainer, pokemon=pokemon, level=level, experience=experience)
    if kind is TrainPokemon:
        # as many pokemon as there are requests to train one: some are named twice while they wait
        return TrainPokemon(pokemon=f"pokemon {dice.randint(1, max(1, jobs // 4))}")
    if kind is HealPokemon:
        return HealPokemon(trainer=trainer, team=dice.choices(POKEMON, k=dice.randint(1, 6)))
    if kind is GymBattle:
        return GymBattle(trainer=trainer, gym=dice.choice(GYMS))
    return ExploreArea(trainer=trainer, area=dice.choice(AREAS))
