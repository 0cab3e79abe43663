"""`make faults`: inject every fault of the table, and say what came of it.

At full size this takes long, and the table in docs/reliability.md is written anew. `--row 4 --seed 7` runs one row, as often
as wanted with the same choices; `--quick` all of them small. Two more run nothing: `--judge FILE` looks through a history
that was kept, and `--seeds FILE...` puts what came of other seeds, as `--json` wrote it, into the document. The status is 1
when a row failed.
"""

from __future__ import annotations

import argparse
import platform
import signal
import sys
from pathlib import Path

import msgspec

import tests.faults.rows  # noqa: F401 - fills ROWS
from tests.faults.harness import ROWS, Report, Scale, run, warm
from tests.helpers.history import check, read
from tests.helpers.nursery import nursery
from tests.helpers.server import NoServerError, find_server

DOCUMENT = Path(__file__).parents[2] / "docs" / "reliability.md"
HEADER = f"{'row':<5}{'fault':<44}{'injected':>9}{'jobs':>12}{'lost':>6}{'twice':>7}{'worst recovery':>16}  result"


def main() -> int:
    """Run what was asked for."""
    options = _arguments()
    if options.judge:
        print(msgspec.json.format(msgspec.json.encode(check(read(options.judge)))).decode())
        return 0
    decode = msgspec.json.Decoder(Report).decode
    if options.seeds:
        _write_seeds(
            [decode(line) for file in options.seeds for line in file.read_bytes().splitlines()]
        )
        return 0
    # whoever is told to end takes the servers along
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    rows = [ROWS[name] for name in options.row or ROWS]
    scale = Scale.QUICK if options.quick else Scale.FULL
    reports: list[Report] = []
    if not options.json:
        print(HEADER, flush=True)
    try:
        with find_server(durable=True) as server, nursery() as forks:
            warm(server.dsn)
            for entry in rows:
                report = run(entry, scale, options.seed, server.dsn, forks)
                reports.append(report)
                _show(report, options)
            version = server.version
    except NoServerError as error:
        print(error, file=sys.stderr)
        return 2
    if not options.row and not options.quick:
        _write(reports, version, options.seed)
    failed = [report.row for report in reports if not (report.passed or report.not_run)]
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument(
        "--row",
        action="append",
        choices=list(ROWS),
        metavar="ROW",
        help="only this one; may be repeated",
    )
    parser.add_argument(
        "--judge", type=Path, metavar="FILE", help="say what is to be concluded from this history"
    )
    parser.add_argument(
        "--seeds",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="results of other seeds, for the document",
    )
    parser.add_argument("--seed", type=int, default=1, help="of all random choices (default: 1)")
    parser.add_argument("--quick", action="store_true", help="small: some seconds a row")
    parser.add_argument("--json", action="store_true", help="one JSON object a row, on one line")
    return parser.parse_args()


def _show(report: Report, options: argparse.Namespace) -> None:
    if options.json:
        print(msgspec.json.encode(report).decode(), flush=True)
        return
    if report.not_run:
        print(
            f"{report.row:<5}{report.fault[:43]:<44}{'':>50}  not run: {report.not_run}", flush=True
        )
        return
    print(
        f"{report.row:<5}{report.fault[:43]:<44}{report.injected:>9,}{report.jobs:>12,}{report.lost:>6}"
        f"{report.duplicated:>7}{_seconds(report):>16}  {'passed' if report.passed else 'FAILED'}"
        f" in {report.seconds:.0f} s",
        flush=True,
    )
    for text in report.broken:
        print(f"     {text}")
    if report.broken:
        quick = " --quick" if options.quick else ""
        print(
            f'     repeat it with: make faults ARGS="--row {report.row} --seed {report.seed}{quick}"',
            flush=True,
        )


def _seconds(report: Report) -> str:
    return "" if report.recovery_s is None else f"{report.recovery_s:.2f} s"


def _write(reports: list[Report], version: str, seed: int) -> None:
    """Put the table into the document, between its marks."""
    lines = [
        f"PostgreSQL {version}, Python {platform.python_version()}, seed {seed}.",
        "",
        "| row | fault | passes when | injected | jobs | lost | twice | worst recovery | result |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for report in reports:
        passes = ROWS[report.row].passes
        if report.not_run:
            lines.append(
                f"| {report.row} | {report.fault} | {passes} | | | | | | not run: {report.not_run} |"
            )
            continue
        lines.append(
            f"| {report.row} | {report.fault} | {passes} | {report.injected:,} | {report.jobs:,} | {report.lost}"
            f" | {report.duplicated} | {_seconds(report)} | {'passed' if report.passed else '**failed**'} |"
        )
    _put("table", lines)


def _write_seeds(reports: list[Report]) -> None:
    """Put what came of other seeds into the document. Of a row that was run twice with one seed both are told."""
    seeds = sorted({report.seed for report in reports})
    lines = [
        f"| row | fault |{''.join([f' seed {seed} |' for seed in seeds])}",
        f"|---|---|{'---|' * len(seeds)}",
    ]
    for row in (row for row in ROWS.values() if row.run is not None):
        cells = [
            ", ".join(
                [
                    _verdict(report)
                    for report in reports
                    if (report.row, report.seed) == (row.name, seed)
                ]
            )
            for seed in seeds
        ]
        lines.append(f"| {row.name} | {row.fault} | {' | '.join(cells)} |")
    _put("seeds", lines)


def _verdict(report: Report) -> str:
    if report.not_run:
        return f"not run: {report.not_run}"
    counts = f"{report.jobs:,} jobs, {report.lost} lost"
    worst = "" if report.recovery_s is None else f", {_seconds(report)}"
    return f"{'passed' if report.passed else '**failed**'}: {counts}{worst}"


def _put(name: str, lines: list[str]) -> None:
    """Replace what is between the marks of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    text = DOCUMENT.read_text("utf-8")
    before, rest = text.split(begin)
    after = rest.split(end)[1]
    DOCUMENT.write_text(f"{before}{begin}\n{chr(10).join(lines)}\n{end}{after}", "utf-8")


if __name__ == "__main__":
    sys.exit(main())
