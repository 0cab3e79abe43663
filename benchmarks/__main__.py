"""The command line of the benchmarks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import ExitStack

import msgspec

from workers.embedded import embedded

from .bench import Options
from .drain import drain
from .enqueue import enqueue, enqueue_batch
from .latency import latency
from .report import Result, line

BENCHMARKS: dict[str, Callable[[Options], Result]] = {
    "drain": drain,
    "latency": latency,
    "enqueue": enqueue,
    "enqueue_batch": enqueue_batch,
}


def main() -> int:
    """Run the benchmarks that were asked for; the status is 1 when a job did not run exactly once."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("name", nargs="?", choices=["all", *BENCHMARKS], default="all")
    parser.add_argument("--json", action="store_true", help="one JSON object a benchmark, on one line")
    parser.add_argument("--quick", action="store_true", help="smaller: each in under 20 s")
    parser.add_argument("--uvloop", action="store_true", help="on uvloop, both sides")
    parser.add_argument(
        "--database-url",
        default=os.environ.get("BENCH_DATABASE_URL"),
        help="a server to use (default: the embedded one, durable, with its own defaults)",
    )
    options = parser.parse_args()
    names = list(BENCHMARKS) if options.name == "all" else [options.name]
    correct = True
    with ExitStack() as stack:
        dsn = options.database_url or stack.enter_context(embedded()).dsn
        for name in names:
            result = BENCHMARKS[name](Options(dsn, options.quick, options.uvloop))
            print(msgspec.json.encode(result).decode() if options.json else line(result), flush=True)
            correct = correct and result.exactly_once
    return 0 if correct else 1


if __name__ == "__main__":
    sys.exit(main())
