"""What the benchmarks print, and when they say that something is wrong."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import __main__ as command_line
from benchmarks.bench import Options, interleave
from benchmarks.counter import Counter, Slices
from benchmarks.goals import GOALS, judge
from benchmarks.peers import PEERS, WORKLOADS, as_ours
from benchmarks.report import Point, Result, Sample, line, summarize

PEER = {peer.name: peer for peer in PEERS}


def sample(per_second: float, *, exactly_once: bool = True) -> Sample:
    return Sample(per_second=per_second, exactly_once=exactly_once, wal_bytes_per_job=500.0)


def result(*pairs: tuple[Sample, Sample]) -> Result:
    return summarize(Result, "drain", 10, pairs)


def run_main(monkeypatch: pytest.MonkeyPatch, found: Result, *arguments: str) -> int:
    """Run the command line with one benchmark that finds `found`."""
    monkeypatch.setattr(command_line, "BENCHMARKS", {"drain": lambda options: found})
    arguments = ("--database-url", "postgresql:///unused", *arguments)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
    return command_line.main()


def test_the_ratio_is_the_median_of_the_pairs_own_ratios() -> None:
    found = result((sample(10), sample(100)), (sample(90), sample(100)), (sample(40), sample(50)))
    assert (found.per_second, found.min, found.max) == (40, 10, 90)
    assert found.limit_per_second == 100
    assert found.ratio == 0.8


@pytest.mark.parametrize("side", [0, 1])
def test_a_job_that_ran_twice_on_either_side_is_seen(side: int) -> None:
    pair = [sample(10), sample(100)]
    pair[side].exactly_once = False
    assert not result((pair[0], pair[1])).exactly_once


def test_one_object_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(monkeypatch, result((sample(10), sample(100))), "drain", "--json") == 0
    (printed,) = capsys.readouterr().out.splitlines()
    assert json.loads(printed)["ratio"] == 0.1


def test_the_status_is_1_when_a_job_did_not_run_exactly_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = result((sample(10, exactly_once=False), sample(100)))
    assert run_main(monkeypatch, found, "drain") == 1
    assert "NOT EXACTLY ONCE" in capsys.readouterr().out


def test_peers_that_are_not_installed_are_no_failure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PEERS_HARNESS", raising=False)
    assert run_main(monkeypatch, result((sample(10), sample(100))), "drain", "--peers") == 0
    assert "PEERS_HARNESS" in capsys.readouterr().err


def test_all_writes_results_and_pictures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = result((sample(10), sample(100)))
    found.name, found.points = "backlog", [Point(10, 1.0, 1.0), Point(1000, 1.1, 1.0)]
    monkeypatch.setattr(command_line, "OUT", tmp_path / "out")
    assert run_main(monkeypatch, found) == 0
    assert (tmp_path / "out" / "backlog.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "backlog.json").read_bytes())["n"] == 10


def test_a_goal_is_met_or_missed() -> None:
    assert judge(result((sample(46), sample(100)))) == (
        "ratio >= 0.45 met; wal_bytes_per_job <= 650 met"
    )
    assert judge(result((sample(44), sample(100)))).startswith("ratio >= 0.45 MISSED")


def test_every_goal_belongs_to_a_benchmark() -> None:
    assert GOALS.keys() <= command_line.BENCHMARKS.keys()
    assert WORKLOADS.keys() <= command_line.BENCHMARKS.keys()


def test_a_line_names_what_was_measured() -> None:
    printed = line(result((sample(46), sample(100))))
    assert "wal_bytes_per_job 500" in printed
    assert "each job once" in printed
    assert "p50_ms" not in printed


def test_the_sides_of_a_pair_take_turns_at_being_first() -> None:
    order: list[str] = []

    def side(name: str) -> Sample:
        order.append(name)
        return sample(1)

    pairs = interleave(2, lambda: side("library"), lambda: side("limit"))
    assert len(pairs) == 2
    assert order == ["library", "limit", "limit", "library"]


def test_a_counter_knows_jobs_that_are_missing_or_ran_twice() -> None:
    states = []
    counter = Counter(2)
    for number in (0, 1, 1):
        counter.ran(number)
        states.append((counter.finished, counter.exactly_once))
    assert states == [(False, False), (True, True), (True, False)]


def test_slices_are_timed_and_put_together_into_parts() -> None:
    counter = Slices(12, 3)
    for number in range(12):
        if number % 3 == 0:
            counter.comes()
        assert counter.done.is_set() == (number >= 3)
        counter.ran(number)
    assert len(counter.seconds) == 4
    counter.seconds = [1.0, 3.0, 0.5, 0.5]
    assert counter.rates(2) == [1.0, 4.0]  # of each slice the first start is where its time begins
    assert counter.rates(1) == [8 / 5]
    assert len(counter.waits) == 4


def test_a_peer_has_the_flags_of_a_drain_unless_told_otherwise() -> None:
    pgqueuer = PEER["pgqueuer"]
    assert pgqueuer.flags_for("drain2") == pgqueuer.flags_for("drain")
    assert pgqueuer.flags_for("latency") == ["--concurrency", "10"]
    assert pgqueuer.flags_for("enqueue_one") == []


def test_the_figures_of_a_peer_are_named_as_ours() -> None:
    row = {"workload": "drain", "version": "1", "n": 10, "runs": 3, "exactly_n": True, "notes": ""}
    drained = row | {"per_second": 50, "per_second_min_max": [40, 60], "rss_mb": 30.0}
    own = drained | {"per_second": 100}
    found = as_ours("drain", PEER["graphile"], drained, own)
    assert {"n", "runs", "limit_per_second", "exactly_once"} <= found.keys()
    assert (found["name"], found["peer"], found["ratio"]) == ("drain", "graphile", 0.5)
    assert (found["min"], found["max"], found["rss_mb"]) == (40, 60, 30.0)
    slow = row | {"workload": "latency", "p50_ms": 4.0, "p99_ms": 9.0, "p50_min_max": [2.0, 5.0]}
    found = as_ours("latency", PEER["graphile"], slow, slow | {"p50_ms": 2.0})
    assert (found["per_second"], found["min"], found["max"]) == (250, 200, 500)
    assert (found["ratio"], found["p99_ms"]) == (2.0, 9.0)
    found = as_ours("drain", PEER["graphile"], {"error": "no"}, own)
    assert found == {"name": "drain", "peer": "graphile", "label": "tuned", "error": "no"}


def test_options_run_no_more_than_the_scale_says() -> None:
    options = Options("postgresql:///unused")
    assert options.pick(full=3, quick=2, tiny=1) == 3
    assert options.pairs >= 5
    assert options.loop_factory is None
