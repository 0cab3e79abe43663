"""One process of a benchmark that needs its own: `python -m benchmarks.child ORDER`; see children.py for the other end.

It speaks in lines: it says that it is ready, begins at the first line that it is sent, reports, and ends at the second one.
Imports are made by what needs them, so that the bare loop's process holds no more than the bare loop.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, Literal

import msgspec

__all__ = ["Order", "Report"]

Task = Literal["drain", "bare", "stay", "idle"]
#: What a runner does at first (the first scans, the listener) is not its idling.
_SETTLE = 0.4
_PATIENCE = 300.0
#: What a processor does but wait; some systems do not tell them apart.
_BUSY = ("user", "nice", "system", "irq", "softirq")


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: drain (with the library, or bare), drain and stay until told to end, or be idle for `seconds`."""

    task: Task
    dsn: str
    n: int = 0
    workers: int = 10
    queues: int = 1
    seconds: float = 0.0
    uvloop: bool = False


class Report(msgspec.Struct, kw_only=True):
    """When it began and ended, by the machine's monotonic clock; how often each job ran; processor time over time.

    Of a drain with the library also the seconds of processor time that it took, and that the whole machine was busy.
    """

    started: float
    ended: float
    runs: bytes = b""
    cpu_share: float = 0.0
    own_seconds: float = 0.0
    machine_seconds: float = 0.0


async def _drain(order: Order) -> None:
    import psutil

    from .counter import Counter
    from .drain import watched_drain

    def look() -> tuple[float, float, float]:
        times = psutil.cpu_times()
        busy = sum(getattr(times, name, 0.0) for name in _BUSY)
        return time.perf_counter(), time.process_time(), busy

    counter = Counter(order.n)
    began, done = await watched_drain(order.dsn, counter, look)
    (start, _, _), (end, _, _) = began, done
    own, machine = done[1] - began[1], done[2] - began[2]
    runs = bytes(counter.runs)
    _tell(Report(started=start, ended=end, runs=runs, own_seconds=own, machine_seconds=machine))


async def _bare(order: Order) -> None:
    from .bare import bare_drain
    from .counter import Counter

    counter = Counter(order.n)
    start, end = await bare_drain(order.dsn, counter)
    _tell(Report(started=start, ended=end, runs=bytes(counter.runs)))


async def _stay(order: Order) -> None:
    from .counter import Counter
    from .waiting import until

    counter = Counter(order.n)
    async with _runner(order, counter).start():
        start = time.perf_counter()
        await until(lambda: counter.finished, _PATIENCE)
        end = time.perf_counter()
        await asyncio.sleep(0.5)  # until the outcomes are written, and every worker waits
        _tell(Report(started=start, ended=end, runs=bytes(counter.runs)))


async def _idle(order: Order) -> None:
    from .counter import Counter

    async with _runner(order, Counter(0)).start():
        await asyncio.sleep(_SETTLE)
        start, cpu = time.perf_counter(), time.process_time()
        await asyncio.sleep(order.seconds)
        end = time.perf_counter()
        share = (time.process_time() - cpu) / (end - start)
    _tell(Report(started=start, ended=end, cpu_share=share))


def _runner(order: Order, context: Any) -> Any:
    from workers import Runner

    from .jobs import Noop

    runner = Runner(order.dsn, context).register_job_type(Noop)
    runner.configure_default_queue(num_workers=order.workers)
    for number in range(1, order.queues):
        runner.configure_queue(f"other-{number}", num_workers=order.workers)
    return runner


def _tell(report: Report) -> None:
    """Report, and wait for the word to end; whoever sent the order looks at this process meanwhile."""
    print(msgspec.json.encode(report).decode(), flush=True)
    sys.stdin.readline()


def main() -> None:
    """Carry out the order in the first argument."""
    order = msgspec.json.decode(sys.argv[1], type=Order)
    work = {"drain": _drain, "bare": _bare, "stay": _stay, "idle": _idle}[order.task]
    loop_factory = None
    if order.uvloop:
        import uvloop

        loop_factory = uvloop.new_event_loop
    print("ready", flush=True)
    sys.stdin.readline()
    with asyncio.Runner(loop_factory=loop_factory) as loop:
        loop.run(work(order))


if __name__ == "__main__":
    main()
