"""The command line."""

from __future__ import annotations

import argparse
import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Options", "parse"]

DESCRIPTION = """\
A monster-collecting game that puts `workers` under load and counts every job.

Four players send requests as to a web application: each enqueues in a transaction of its own, one job or many, and some
change their minds and roll back. Runners, which are processes of their own, work five queues:

  job           share  queue           workers      poll    priority  takes at --speed 1
  CatchPokemon   40 %  field_work      N            50 ms   10        100-800 ms, and fails by bad luck
  TrainPokemon   25 %  training        N/2          100 ms  5         200-1,500 ms, deduplicated
  HealPokemon    15 %  pokemon_center  N/4          100 ms  15        350-1,100 ms, by the size of the team
  GymBattle      10 %  gym_battles     2            200 ms  20        1-3 s, transactional; badges help
  ExploreArea    10 %  exploration     N            150 ms  3         300-1,200 ms

What fails is tried again a second later, six times in all, and is a dead letter then. At the end a table shows what
became of the jobs:

  lost       enqueued - completed - dead - still in the table
  rescued    given back when their runner was killed, and run again: what it was running, and what it had claimed early
  pick-up    from the commit of a request until a worker begins with its job: half of the jobs (p50), and all but one
             in a hundred (p99), waited no longer. A backlog is part of it; see --rate

The exit status is 0 when no job was lost, 1 when one was or the game can't be played, 130 after Ctrl-C.
"""

EXAMPLES = """\
examples:
  python -m examples.stress_test                                  2,000 jobs on an embedded PostgreSQL, within a minute
  python -m examples.stress_test --failures                       much goes wrong: watch the retries
  python -m examples.stress_test --kill-workers 3                 SIGKILL three runners: watch the rescues
  python -m examples.stress_test --rate 50                        no backlog: what pick-up latency is like then
  python -m examples.stress_test --database-url postgresql://localhost/test --json > result.json
"""


@dataclass(frozen=True, slots=True)
class Options:
    """The settings of one run."""

    jobs: int
    workers: int
    runners: int
    duration: float
    database_url: str | None
    skip_db_setup: bool
    speed: float
    rate: float | None
    seed: int
    failures: bool
    kill_workers: int
    json: bool


def parse(arguments: Sequence[str] | None = None) -> Options:
    """Return the options that `arguments` give; exit with a message where they are wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.stress_test",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_load(parser)
    _add_trouble(parser)
    _add_surroundings(parser)
    given = parser.parse_args(arguments)
    if given.skip_db_setup and given.database_url is None:
        parser.error("--skip-db-setup needs --database-url: an embedded database starts out empty")
    if given.runners is None:
        given.runners = 3 if given.kill_workers else 1
    if given.seed is None:
        given.seed = secrets.randbelow(10_000)
    return Options(**vars(given))


def _add_load(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the load")
    group.add_argument(
        "--jobs", type=_count, default=2000, metavar="N", help="jobs to ask for (2000)"
    )
    group.add_argument(
        "--workers", type=_count, default=10, metavar="N", help="N of the table, per runner (10)"
    )
    group.add_argument(
        "--runners",
        type=_count,
        metavar="N",
        help="runner processes, each with all five queues (1, or 3 with --kill-workers)",
    )
    group.add_argument(
        "--speed",
        type=_positive,
        default=10.0,
        metavar="X",
        help="how much faster than in the table jobs are; backoff and polls stay as they are (10)",
    )
    group.add_argument(
        "--rate", type=_positive, metavar="X", help="jobs to ask for in a second (all at once)"
    )
    group.add_argument(
        "--seed", type=int, metavar="N", help="play the same game again: the seed that it showed"
    )


def _add_trouble(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the trouble")
    group.add_argument(
        "--failures", action="store_true", help="any job may fail, in 2 of 5 attempts"
    )
    group.add_argument(
        "--kill-workers",
        type=_number,
        default=0,
        metavar="N",
        help="SIGKILL N runners at random moments, and start others in their place",
    )
    group.add_argument(
        "--duration",
        type=_positive,
        default=300.0,
        metavar="S",
        help="stop after S seconds; what still waits then is left in the table, and not lost (300)",
    )


def _add_surroundings(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the surroundings")
    group.add_argument(
        "--database-url",
        metavar="URL",
        help="a PostgreSQL database, in which the rows of the run stay, or embedded:PATH; "
        "otherwise an embedded one is started, and removed at the end",
    )
    group.add_argument(
        "--skip-db-setup",
        action="store_true",
        help="do not apply the migrations: the database has been used for this before",
    )
    group.add_argument(
        "--json",
        action="store_true",
        help="print the result as one object on one line; everything else goes to standard error",
    )


def _count(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{text} is not from 1 to 10,000,000")
    return number


def _number(text: str) -> int:
    return 0 if text == "0" else _count(text)


def _positive(text: str) -> float:
    number = float(text)
    if not (math.isfinite(number) and number > 0):
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return number


# What argparse calls them when it says "invalid ... value".
_count.__name__ = _number.__name__ = "whole number"
_positive.__name__ = "number"
