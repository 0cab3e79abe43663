"""Producers that enqueue all the time, whatever becomes of the server, and know which of their jobs were acknowledged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from tests.helpers.history import PATIENCE, History, by
from tests.helpers.processes import Crew, WorkerProcess

__all__ = ["Producer", "producing"]


class Producer:
    """A `Stream` of tests.helpers.producer_process, and what is known of its jobs."""

    def __init__(self, process: WorkerProcess, kinds: Sequence[Any], history: History) -> None:
        self._process = process
        self._kinds = {kind.job_name: kind for kind in kinds}
        self._history = history

    @property
    def acked(self) -> dict[Any, list[int]]:
        """The jobs whose commit was confirmed, by their class."""
        found: dict[Any, list[int]] = {kind: [] for kind in self._kinds.values()}
        for event in self._history.events("ok", where=by(self._process.name)):
            found[self._kinds[event.text]].append(event.job)
        return found

    @property
    def jobs(self) -> list[int]:
        """All that were acknowledged."""
        return [job for ids in self.acked.values() for job in ids]

    @property
    def unknown(self) -> set[int]:
        """Those of which nobody said whether they are there."""
        mine = by(self._process.name)
        return {event.job for event in self._history.events("unknown", where=mine)} - set(self.jobs)

    @property
    def refused(self) -> int:
        """How often it found the server gone."""
        return len(self._history.events("fail", where=by(self._process.name)))

    def wait_refused(self, times: int) -> None:
        """Wait until it has found the server gone so often, altogether."""
        self._history.wait_for(
            "fail", count=times, where=by(self._process.name), seconds=2 * PATIENCE
        )

    def stop(self) -> None:
        """Stop. Raises RuntimeError when it has ended for a reason that a fault does not explain."""
        with contextlib.suppress(BrokenPipeError):
            self._process.tell("stop")
        if status := self._process.wait():
            raise RuntimeError(f"{self._process.name} ended with status {status}; see its output")


@contextlib.contextmanager
def producing(
    crew: Crew,
    *kinds: Any,
    producers: int = 2,
    stock: int = 60,
    seconds: float = 0.02,
    url: str | None = None,
) -> Iterator[list[Producer]]:
    """Producers of these kinds of jobs, on the crew's database or on `url`, stopped at the end."""
    types = ",".join(kind.job_name for kind in kinds)
    options = {"stock": stock, "seconds": seconds, "database_url": url or crew.database_url}
    started = [
        Producer(crew.start_producer(types, **options), kinds, crew.history)
        for _ in range(producers)
    ]
    try:
        yield started
    finally:
        for producer in started:
            producer.stop()
