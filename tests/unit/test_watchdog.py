"""The watchdog of `workers run`, on processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no watchdog elsewhere")

#: Of the process, until the watchdog ends it.
_SECONDS = 0.3
_PROGRAM = """
import ctypes, os, signal, sys, threading
from workers.cli import watchdog

with watchdog.watchdog({seconds} - watchdog._MARGIN):
    {fault}
print("goes on")
"""


def run(
    fault: str, signals: tuple[int, ...] = (), *, seconds: float = _SECONDS
) -> subprocess.CompletedProcess[str]:
    """How the program ends that does this; one that stops is sent `signals` when its time is long over."""
    command = [sys.executable, "-c", _PROGRAM.format(fault=fault, seconds=seconds)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        if signals:
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            time.sleep(_SECONDS * 3)  # this is the fault
        for number in signals:
            os.kill(process.pid, number)
        out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def test_a_gil_that_is_not_let_go_ends_the_process() -> None:
    ended = run("ctypes.PyDLL(None).poll(None, 0, 600_000)")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "Timeout" in ended.stderr


def test_ctrl_z_stops_it_too() -> None:
    ended = run("os.kill(os.getpid(), signal.SIGTSTP)", (signal.SIGCONT,))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "goes on\n", "")


def test_after_ctrl_z_it_goes_on_watching() -> None:
    fault = "os.kill(os.getpid(), signal.SIGTSTP); ctypes.PyDLL(None).poll(None, 0, 600_000)"
    ended = run(fault, (signal.SIGCONT,))
    assert (ended.returncode, ended.stdout) == (1, "")


def test_a_second_ctrl_z_in_the_middle_of_the_first() -> None:
    """Python runs the handler while it runs."""
    fault = (
        "signal.alarm(10);"  # ends what hangs
        " cancel = watchdog.faulthandler.cancel_dump_traceback_later;"
        " again = iter([signal.SIGTSTP]);"
        " watchdog.faulthandler.cancel_dump_traceback_later ="
        " lambda: (cancel(), [os.kill(os.getpid(), number) for number in again]);"
        " os.kill(os.getpid(), signal.SIGTSTP)"
    )
    ended = run(fault, (signal.SIGCONT,))
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "goes on\n", "")


def test_a_job_that_closes_standard_error_does_not_end_the_process() -> None:
    fault = """watchdog._EVERY = 0.02
    [thread] = [each for each in threading.enumerate() if each.name == "workers-watchdog"]
    sys.stderr.close()
    sys.__stderr__.close()
    thread.join(1.2)
    print(thread.is_alive())"""
    ended = run(fault, seconds=60.0)
    assert (ended.returncode, ended.stdout) == (0, "True\ngoes on\n")
