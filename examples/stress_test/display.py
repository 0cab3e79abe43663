"""What one sees while the game is played: a bar for each queue on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from .database import Tally
from .game import QUEUES
from .messages import Finished, Message, News, Rescued

__all__ = ["Display", "open_display"]

#: Seconds between two lines where there is no terminal.
LINE_EVERY = 5.0


class Display(Protocol):
    """Somebody who is kept informed."""

    def show(
        self, enqueued: Mapping[str, int], tally: Iterable[Tally], rescued: Mapping[str, int]
    ) -> None:
        """Show how many jobs of each queue were enqueued, what became of them so far, and how often they were rescued."""

    def hear(self, message: Message) -> None:
        """Take note of what a runner tells."""

    def say(self, text: str) -> None:
        """Show a line."""


@contextmanager
def open_display(console: Console) -> Iterator[Display]:
    """Yield the display that suits `console`."""
    if not console.is_terminal:
        yield LineDisplay(console)
        return
    with Live(console=console, auto_refresh=False) as live:
        yield LiveDisplay(live)


class LiveDisplay:
    """A bar for each queue; below them, the latest failures and the latest news from the game."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._progress = Progress(
            TextColumn("{task.description}", style="bold"),
            BarColumn(bar_width=40),
            TextColumn("{task.completed} of {task.total}"),
            TextColumn("{task.fields[troubles]}", style="yellow"),
        )
        self._bars = {
            queue: self._progress.add_task(queue, total=0, troubles="") for queue in QUEUES
        }
        self._troubles: deque[str] = deque(maxlen=6)
        self._news: deque[str] = deque(maxlen=3)

    def show(
        self, enqueued: Mapping[str, int], tally: Iterable[Tally], rescued: Mapping[str, int]
    ) -> None:
        figures = _figures(tally, rescued)
        for queue, bar in self._bars.items():
            counted = figures.get(queue, Counter())
            shown = ("retried", "rescued", "dead")
            troubles = ", ".join(f"{counted[name]} {name}" for name in shown if counted[name])
            self._progress.update(
                bar,
                total=enqueued.get(queue, 0),
                completed=counted["completed"] + counted["dead"],
                troubles=troubles,
            )
        troubles_seen = Text("\n".join(self._troubles), style="yellow")
        news = Text("\n".join(self._news), style="dim")
        self._live.update(Group(self._progress, troubles_seen, news), refresh=True)

    def hear(self, message: Message) -> None:
        match message:
            case Finished(trouble=trouble) if trouble:
                self._troubles.append(trouble)
            case News(text=text):
                self._news.append(text)
            case Rescued():
                self._live.console.print(f"[green]{escape(_rescue(message))}")

    def say(self, text: str) -> None:
        self._live.console.print(f"[red]{escape(text)}")


class LineDisplay:
    """A line every few seconds, and one for everything out of the ordinary."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._begun = self._shown = time.monotonic()

    def show(
        self, enqueued: Mapping[str, int], tally: Iterable[Tally], rescued: Mapping[str, int]
    ) -> None:
        now = time.monotonic()
        if now - self._shown < LINE_EVERY:
            return
        self._shown = now
        total = sum(_figures(tally, rescued).values(), Counter[str]())
        self.say(
            f"{now - self._begun:.0f} s: {total['completed']} of {sum(enqueued.values())} jobs completed, "
            f"{total['retried']} retried, {total['rescued']} rescued, {total['dead']} dead"
        )

    def hear(self, message: Message) -> None:
        if isinstance(message, Rescued):
            self.say(_rescue(message))

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _figures(tally: Iterable[Tally], rescued: Mapping[str, int]) -> dict[str, Counter[str]]:
    """The figures of each queue by name."""
    figures: dict[str, Counter[str]] = {}
    for line in tally:
        counted = figures.setdefault(line.queue, Counter())
        counted[line.fate] += line.jobs
        counted["retried"] += line.retries - (line.jobs if line.fate == "dead" else 0)
    for queue, number in rescued.items():
        figures.setdefault(queue, Counter())["rescued"] = number
    return figures


def _rescue(message: Rescued) -> str:
    text = f"rescued {message.jobs} jobs of {message.name}"
    if message.running is not None and message.jobs > message.running:
        # an end that is told may not be written yet: not all others had never begun
        others = message.jobs - message.running
        text += f" ({others} of them were claimed, and not begun yet or just done)"
    return f"{text}: {message.reason}"
