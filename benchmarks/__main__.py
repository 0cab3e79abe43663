"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import msgspec

from workers.embedded import embedded

from .backlog import backlog
from .bench import Options, Scale
from .cost import python_time, telemetry_cost
from .drain import drain, drain_best
from .drain2 import drain2
from .enqueue import enqueue, enqueue_batch, enqueue_copy, enqueue_quiet
from .enqueue_parts import enqueue_parts
from .flush import flush_claims, flush_enqueue
from .goals import judge
from .idle import idle
from .latency import latency
from .memory import memory
from .peers import print_peers
from .pinned import pinned
from .plot import plot
from .report import HEADER, Result, line
from .scheduled import scheduled
from .sleep import sleep, sleep_1000
from .wakeup import wakeup

BENCHMARKS: dict[str, Callable[[Options], Result]] = {
    "drain": drain,
    "drain_best": drain_best,
    "drain2": drain2,
    "latency": latency,
    "enqueue": enqueue,
    "enqueue_quiet": enqueue_quiet,
    "enqueue_batch": enqueue_batch,
    "enqueue_copy": enqueue_copy,
    "sleep": sleep,
    "sleep_1000": sleep_1000,
    "backlog": backlog,
    "scheduled": scheduled,
    "pinned": pinned,
    "memory": memory,
    "idle": idle,
    "flush_claims": flush_claims,
    "flush_enqueue": flush_enqueue,
    "wakeup": wakeup,
    "enqueue_parts": enqueue_parts,
    "python_time": python_time,
    "telemetry": telemetry_cost,
}
OUT = Path(__file__).parent / "out"


def main() -> int:
    """Run the benchmarks that were asked for; the status is 1 when a job did not run exactly once."""
    options = _arguments()
    # whoever is told to end takes the server along
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    names = list(BENCHMARKS) if options.name == "all" else [options.name]
    correct = True
    if not options.json:
        print(HEADER)
    with ExitStack() as stack:
        dsn = options.database_url or stack.enter_context(embedded()).dsn
        scale = Scale.QUICK if options.quick else Scale.FULL
        for name in names:
            result = BENCHMARKS[name](Options(dsn, scale, options.uvloop))
            _show(result, options)
            correct = correct and result.exactly_once
    if options.peers:
        correct = print_peers(names, as_json=options.json) and correct
    return 0 if correct else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks")
    parser.add_argument("name", nargs="?", choices=["all", *BENCHMARKS], default="all")
    parser.add_argument(
        "--json", action="store_true", help="one JSON object a benchmark, on one line"
    )
    parser.add_argument("--quick", action="store_true", help="smaller: each in under 20 s")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop, both sides")
    parser.add_argument(
        "--peers", action="store_true", help="other libraries too; see benchmarks/peers.py"
    )
    parser.add_argument(
        "--database-url",
        default=os.environ.get("BENCH_DATABASE_URL"),
        help="a server to use (default: the embedded one, with its own settings and durability)",
    )
    return parser.parse_args()


def _show(result: Result, options: argparse.Namespace) -> None:
    if options.json:
        print(msgspec.json.encode(result).decode(), flush=True)
    else:
        print(line(result))
        if not options.quick and (verdict := judge(result)):
            print(f"{'':14}{verdict}")
        sys.stdout.flush()
    if options.name == "all":
        _keep(result)


def _keep(result: Result) -> None:
    """Under benchmarks/out: the result, and a picture of its curve."""
    OUT.mkdir(exist_ok=True)
    (OUT / f"{result.name}.json").write_bytes(msgspec.json.encode(result) + b"\n")
    try:
        plot(result, OUT)
    except ImportError:
        print(
            "no picture: pip install matplotlib (the extra `bench` of workers-pg)", file=sys.stderr
        )


if __name__ == "__main__":
    sys.exit(main())
