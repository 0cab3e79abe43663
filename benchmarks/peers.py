"""Other PostgreSQL job libraries beside this one: the same workloads, the same server, in one run.

Runs a harness that is not part of this repository, with those of its peers that are installed:

    PEERS_HARNESS   the folder of bench.py, server.py and the adapters
    PEERS_HOME      the folder of the virtual environments, as the harness's README sets them up; this library's is
                    $PEERS_HOME/venv/workers, which may be a symbolic link to the .venv of this repository
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

__all__ = ["Peer", "as_ours", "peer_rows", "print_peers"]

#: The harness's workload for each of our benchmarks; it measures every peer with every one of them.
WORKLOADS = {
    "drain": "drain",
    "drain2": "drain2",
    "latency": "latency",
    "enqueue": "enqueue_one",
    "enqueue_batch": "enqueue_bulk",
    "sleep": "sleep10",
}
_OWN = "workers"
_ADAPTER = "peer_workers.py"
#: What the harness needs to know of this library: virtual environment, adapter, store, the SQL that counts what is left.
_ENTRY = """    "workers": ("workers", "peer_workers", "pg", "select count(*) from background_jobs", {}),"""
_START_SECONDS = 60


class Peer(msgspec.Struct, frozen=True):
    """A library in its best known settings, or its defaults: flags by workload, those of "drain" where none are given."""

    name: str
    label: str
    home: str
    flags: dict[str, str]

    def flags_for(self, workload: str) -> list[str]:
        """For the harness's command line."""
        if workload.startswith("enqueue"):
            return self.flags.get(workload, "").split()
        return self.flags.get(workload, self.flags["drain"]).split()

    def installed(self, home: Path) -> bool:
        """Whether its virtual environment is there."""
        return (home / self.home).exists()


def _python(name: str, label: str, **flags: str) -> Peer:
    environment = {"saq-pg": "saq"}.get(name, name)
    return Peer(name, label, f"venv/{environment}/bin/python", flags)


PEERS = [
    _python("workers", "default", drain="--concurrency 10", sleep10="--concurrency 100"),
    Peer(
        "graphile",
        "tuned",
        "graphile/node_modules/graphile-worker",
        {
            "drain": "--concurrency 24 --variant tuned",
            "latency": "--concurrency 10 --variant tuned",
            "sleep10": "--concurrency 100 --variant tuned",
        },
    ),
    _python(
        "pgqueuer",
        "asyncpg",
        drain="--concurrency 500 --variant apool",
        latency="--concurrency 10",
        sleep10="--concurrency 100 --variant apool-cap",
        enqueue_bulk="--batch 5000",
    ),
    _python(
        "chancy",
        "eager",
        drain="--concurrency 500",
        latency="--concurrency 10",
        sleep10="--concurrency 100",
    ),
    _python(
        "saq-pg",
        "",
        drain="--concurrency 50",
        latency="--concurrency 10",
        sleep10="--concurrency 100",
    ),
    _python(
        "procrastinate",
        "tuned pool",
        drain="--concurrency 10 --variant tuned",
        sleep10="--concurrency 100 --variant tuned",
    ),
]


def print_peers(names: Sequence[str], *, as_json: bool) -> bool:
    """Measure and print the peers on what was measured; says on standard error what is missing for that.

    False: this library ran a job not exactly once, or could not be measured.
    """
    places = [os.environ.get(variable, "") for variable in ("PEERS_HARNESS", "PEERS_HOME")]
    if not all(places) or not (Path(places[0]) / "bench.py").is_file():
        print(
            "no peers: set PEERS_HARNESS and PEERS_HOME; see benchmarks/peers.py", file=sys.stderr
        )
        return True
    correct = True
    for row in peer_rows(Path(places[0]), Path(places[1]), names):
        print(json.dumps(row) if as_json else _line(row), flush=True)
        correct = correct and (row["peer"] != _OWN or row.get("exactly_once", False))
    return correct


def peer_rows(harness: Path, home: Path, names: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The harness's result for each benchmark and each peer that is installed, peer by peer within a benchmark.

    The limit of each is this library with default settings, which is measured first.
    """
    installed = [peer for peer in PEERS if peer.installed(home)]
    with _with_adapter(harness) as folder, _server(folder, home):
        for name in names:
            own: dict[str, Any] = {}
            for peer in installed if name in WORKLOADS else ():
                row = _measure(folder, home, peer, WORKLOADS[name])
                own = own or row
                yield as_ours(name, peer, row, own)


def as_ours(name: str, peer: Peer, row: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """The harness's figures under the names that the other benchmarks have; `own`: those of the limit."""
    known: dict[str, Any] = {"name": name, "peer": peer.name, "label": peer.label}
    if "error" in row:
        return known | row
    known |= {field: row[field] for field in ("version", "n", "runs")}
    rate, least, most = _rates(row)
    known |= {"per_second": round(rate, 1), "min": round(least, 1), "max": round(most, 1)}
    if "error" not in own:
        limit, *_ = _rates(own)
        ratio = limit / rate if name == "latency" else rate / limit
        known |= {"limit_per_second": round(limit, 1), "ratio": round(ratio, 3)}
    figures = ("p50_ms", "p99_ms", "rss_mb", "wal_bytes_per_job")
    known |= {field: row[field] for field in figures if row.get(field) is not None}
    return known | {"exactly_once": row["exactly_n"], "notes": row["notes"]}


def _rates(row: dict[str, Any]) -> tuple[float, float, float]:
    """Median, least and most per second; of latencies one over the median delay."""
    if row["workload"] == "latency":
        best, worst = row["p50_min_max"]
        return 1000 / row["p50_ms"], 1000 / worst, 1000 / best
    least, most = row["per_second_min_max"]
    return row["per_second"], least, most


def _measure(folder: Path, home: Path, peer: Peer, workload: str) -> dict[str, Any]:
    command = [
        str(home / "venv/server/bin/python"),
        "bench.py",
        "--peer",
        peer.name,
        "--workload",
        workload,
    ]
    found = subprocess.run(
        [*command, *peer.flags_for(workload)],
        cwd=folder,
        env=_environment(home),
        capture_output=True,
        text=True,
    )
    if found.returncode:
        return {"error": found.stderr.strip()[-300:]}
    row: dict[str, Any] = json.loads(found.stdout)
    return row


@contextmanager
def _with_adapter(harness: Path) -> Iterator[Path]:
    """A copy of the harness that knows this library."""
    with tempfile.TemporaryDirectory(prefix="workers-peers-") as directory:
        folder = Path(directory) / "harness"
        shutil.copytree(harness, folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        shutil.copyfile(Path(__file__).with_name(_ADAPTER), folder / _ADAPTER)
        bench = folder / "bench.py"
        text = bench.read_text()
        bench.write_text(text.replace("PEERS = {\n", f"PEERS = {{\n{_ENTRY}\n", 1))
        yield folder


@contextmanager
def _server(folder: Path, home: Path) -> Iterator[None]:
    """The harness's own server, which writes env.json when it can be used."""
    info = home / "env.json"
    info.unlink(missing_ok=True)
    python = home / "venv/server/bin/python"
    process = subprocess.Popen(
        [python, "server.py"], cwd=folder, env=_environment(home), stdout=subprocess.DEVNULL
    )
    try:
        end = time.monotonic() + _START_SECONDS
        while not info.exists():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError("the peers' server did not start")
            time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(_START_SECONDS)


def _environment(home: Path) -> dict[str, str]:
    return dict(os.environ, PEERS_HOME=str(home))


def _line(row: dict[str, Any]) -> str:
    name = f"{row['peer']} {row['label']}".strip()
    if "error" in row:
        return f"{row['name']:<14}{name:<22}failed: {row['error']}"
    if row["name"] == "latency":
        figures = f"p50 {row['p50_ms']:.2f} ms, p99 {row['p99_ms']:.2f} ms"
    else:
        figures = f"{row['per_second']:>9,.0f}/s ({row['min']:,.0f} to {row['max']:,.0f})"
    once = "each job once" if row["exactly_once"] else "NOT EXACTLY ONCE"
    return f"{row['name']:<14}{name:<22}{figures}, {once}"
