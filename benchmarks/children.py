"""Runs a part of a benchmark in processes of its own, which begin together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import msgspec
import psutil

from .child import Order, Report

__all__ = ["Finding", "run_children"]

_ROOT = Path(__file__).parents[1]
_LAST_SECONDS = 60


class Finding(msgspec.Struct):
    """What a child reported, and its resident memory at that moment."""

    report: Report
    rss_mb: float


class _Child:
    def __init__(self, order: Order) -> None:
        command = [sys.executable, "-m", "benchmarks.child", msgspec.json.encode(order).decode()]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, cwd=_ROOT)

    def read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"a benchmark's process ended with status {self._process.wait()}")
        return line

    def tell(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def finding(self) -> Finding:
        report = msgspec.json.decode(self.read(), type=Report)
        return Finding(report, psutil.Process(self._process.pid).memory_info().rss / 2**20)

    def end(self) -> None:
        self.tell()
        if self._process.wait(_LAST_SECONDS):
            raise RuntimeError(
                f"a benchmark's process ended with status {self._process.returncode}"
            )

    def close(self) -> None:
        """Whatever went wrong, nothing is left running."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.communicate()


def run_children(orders: Sequence[Order]) -> list[Finding]:
    """A process for each order: start all, let them begin together, collect what they report."""
    with ExitStack() as stack:
        children = []
        for order in orders:
            child = _Child(order)
            stack.callback(child.close)
            children.append(child)
        for child in children:
            child.read()
        for child in children:
            child.tell()
        findings = [child.finding() for child in children]
        for child in children:
            child.end()
        return findings
