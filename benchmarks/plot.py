"""Pictures of the scaling curves."""

from __future__ import annotations

from pathlib import Path

import msgspec

from .report import Result

__all__ = ["plot"]


class _Curve(msgspec.Struct, frozen=True):
    title: str
    x: str
    y: str
    value: str
    reference: str
    log_x: bool = True


_CURVES = {
    "backlog": _Curve(
        "Claiming from a long line",
        "jobs waiting",
        "p95 of a claim, ms",
        "this many waiting",
        "the shortest line",
    ),
    "scheduled": _Curve(
        "Draining beside jobs scheduled for tomorrow",
        "jobs scheduled, with a higher priority",
        "jobs per second",
        "with them",
        "without",
    ),
    "pinned": _Curve(
        "Draining while an idle transaction is open",
        "jobs run since it began",
        "jobs per second",
        "with it",
        "without",
        log_x=False,
    ),
    "flush_enqueue": _Curve(
        "Enqueueing one by one where a flush takes 2 ms",
        "tasks that enqueue at the same time",
        "jobs per second",
        "gathered into statements",
        "each on its own",
    ),
}


def plot(result: Result, folder: Path) -> Path | None:
    """Write a PNG of the benchmark's curve; None if it has none. Needs matplotlib (the extra `bench`)."""
    curve = _CURVES.get(result.name)
    if curve is None or not result.points:
        return None
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    x = [point.x for point in result.points]
    axes.plot(x, [point.value for point in result.points], marker="o", label=curve.value)
    axes.plot(
        x, [point.reference for point in result.points], linestyle="--", label=curve.reference
    )
    axes.set(
        title=curve.title, xlabel=curve.x, ylabel=curve.y, xscale="log" if curve.log_x else "linear"
    )
    # from zero: a curve that is cut off looks steeper than it is
    axes.set_ylim(bottom=0)
    axes.legend()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{result.name}.png"
    figure.savefig(path, dpi=120)
    return path
