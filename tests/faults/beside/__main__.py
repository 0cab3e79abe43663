"""`python -m tests.faults.beside`: the poison row of the fault table, given to this library and to others.

Each kind of poison is written into a library's own tables by SQL, before 200 good jobs in the order of claims; then its
worker runs. It survives when every good job runs and is finished, and so does one that is enqueued afterwards. PEERS_HOME
is the folder of the other libraries' environments: venv/NAME each, and graphile/node_modules. With all libraries and kinds
the table in docs/reliability.md is written anew.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec

from tests.faults.beside.kinds import KINDS
from tests.faults.beside.libraries import LIBRARIES, OURS, Library
from tests.faults.beside.output import removed
from tests.faults.beside.table import write
from tests.faults.beside.trial import SECONDS, Outcome, prepared
from workers.embedded import embedded

_ending = threading.Event()


def main() -> int:
    """Run what was asked for; 1 when this library did not survive."""
    options = _arguments()
    given = os.environ.get("PEERS_HOME")
    home = Path(given) if given else None
    names = options.library or list(LIBRARIES)
    not_run = {name: why for name in names if (why := LIBRARIES[name].missing(home))}
    for name, why in not_run.items():
        print(f"{name}: not run: {why}", file=sys.stderr, flush=True)
    folder = Path(tempfile.mkdtemp(prefix="beside-"))
    with embedded() as server, ThreadPoolExecutor(options.at_once) as pool:
        runs = [
            pool.submit(_run, LIBRARIES[name], home, server.dsn, folder, options)
            for name in names
            if name not in not_run
        ]
        try:
            outcomes = [outcome for run in runs for outcome in run.result()]
        except BaseException:
            _ending.set()
            raise
    if not options.library and not options.kind and options.seconds == SECONDS:
        write(outcomes, not_run)
    removed(folder)
    ours = [outcome for outcome in outcomes if outcome.library == OURS]
    return int(any(outcome.verdict in ("stopped", "restarted") for outcome in ours))


def _run(
    library: Library, home: Path | None, server: str, folder: Path, options: argparse.Namespace
) -> list[Outcome]:
    """All kinds that were asked for, one after the other."""
    outcomes = []
    if _ending.is_set():
        return []
    with prepared(library, home, server, folder, options.seconds) as stage:
        for kind in options.kind or KINDS:
            if _ending.is_set():
                break
            outcomes.append(stage.run(KINDS[kind]))
            _show(outcomes[-1], as_json=options.json)
    return outcomes


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.beside", description=__doc__)
    parser.add_argument(
        "--library", action="append", choices=list(LIBRARIES), help="only this one; may be repeated"
    )
    parser.add_argument(
        "--kind", action="append", choices=list(KINDS), help="only this one; may be repeated"
    )
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="for each kind (default: %(default)g)"
    )
    parser.add_argument(
        "--at-once", type=int, default=1, help="so many libraries (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser.parse_args()


def _show(outcome: Outcome, *, as_json: bool) -> None:
    if as_json:
        print(msgspec.json.encode(outcome).decode(), flush=True)
        return
    fate = ", ".join(f"{number} {state}" for state, number in outcome.fate.items())
    words = [f"{outcome.library:<14}{outcome.kind:<16}{outcome.verdict:<17}"]
    if outcome.written:
        words.append(
            f"good {outcome.good}, later {'ran' if outcome.later else 'did not run'}, poison: {fate}"
        )
    if outcome.refused:
        words.append(f"; {sum(outcome.refused.values())} refused ({next(iter(outcome.refused))})")
    if outcome.unfinished or outcome.twice or outcome.exits:
        words.append(
            f"; unfinished {outcome.unfinished}, twice {outcome.twice}, exits {outcome.exits}"
        )
    if outcome.good_at_first_exit is not None:
        words.append(f", good at the first exit {outcome.good_at_first_exit}")
    if outcome.how:
        words.append(f"; {outcome.how} [{outcome.output}]")
    print("".join(words), flush=True)


if __name__ == "__main__":
    sys.exit(main())
