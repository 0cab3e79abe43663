"""A process that has imported everything already and forks workers and producers: at a tenth of what an interpreter costs.

`python -m tests.helpers.nursery FD` serves on the socket with that number. A request is a JSON list, "work" or "produce" and
the arguments for that, together with three file descriptors, the new process's standard streams; the answer is its process
id. When a child ends, its id and exit status follow on the same socket. When the socket is closed, the nursery ends; its
children notice by themselves.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import NoReturn

__all__ = ["Nursery", "nursery"]

_LIMIT = 65536


class Nursery:
    """The test's end. Usable from any thread."""

    def __init__(self, server: socket.socket) -> None:
        self._socket = server
        self._lock = threading.Lock()
        self._born: Future[int] = Future()
        self._exits: dict[int, Future[int]] = {}
        self._reader = threading.Thread(target=self._read, name="nursery", daemon=True)
        self._reader.start()

    def start(self, arguments: list[str], streams: list[int]) -> tuple[int, Future[int]]:
        """Start a process: its id, and its exit status to be."""
        with self._lock:
            self._born = Future()
            socket.send_fds(self._socket, [json.dumps(arguments).encode()], streams)
            pid = self._born.result()
        return pid, self._exits[pid]

    def _read(self) -> None:
        with contextlib.suppress(OSError):
            while message := self._socket.recv(_LIMIT):
                what, pid, status = json.loads(message)
                if what == "born":
                    self._exits[pid] = Future()
                    self._born.set_result(pid)
                else:
                    self._exits[pid].set_result(status)


@contextlib.contextmanager
def nursery(**environment: str) -> Iterator[Nursery]:
    """A nursery, ended with the block; it and its children get `environment` in addition to this process's."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            # what they do carelessly they are to say; see processes.py
            command = [sys.executable, "-Wdefault", "-m", "tests.helpers.nursery"]
            command.append(str(theirs.fileno()))
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=os.environ | environment
            )
        yield Nursery(ours)
        ours.shutdown(socket.SHUT_RDWR)
    process.wait()


def _serve(server: socket.socket) -> None:
    """Fork on request, and report the ends of children."""
    awake, alarm = socket.socketpair()
    for end in (awake, alarm):
        end.setblocking(False)
    signal.set_wakeup_fd(alarm.fileno())
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    with awake, alarm, selectors.DefaultSelector() as selector:
        selector.register(server, selectors.EVENT_READ)
        selector.register(awake, selectors.EVENT_READ)
        while True:
            ready = [key.fileobj for key, _ in selector.select()]
            if awake in ready:
                awake.recv(_LIMIT)
                _report_ends(server)
            if server in ready:
                request, streams, _, _ = socket.recv_fds(server, _LIMIT, 3)
                if not request:
                    return
                _start(server, json.loads(request), streams)


def _report_ends(server: socket.socket) -> None:
    with contextlib.suppress(ChildProcessError, BrokenPipeError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            server.send(json.dumps(["ended", pid, os.waitstatus_to_exitcode(status)]).encode())


def _start(server: socket.socket, arguments: list[str], streams: list[int]) -> None:
    pid = os.fork()
    if pid == 0:
        _become_worker(server, arguments, streams)
    for stream in streams:
        os.close(stream)
    server.send(json.dumps(["born", pid, 0]).encode())


def _become_worker(server: socket.socket, arguments: list[str], streams: list[int]) -> NoReturn:
    """In the child: forget that there is a nursery."""
    from tests.helpers import producer_process, worker_process

    status = 1
    try:
        # a group of its own: when the test's is orphaned, the kernel wakes all that are stopped in it
        os.setpgid(0, 0)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        server.close()
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        {"work": worker_process, "produce": producer_process}[arguments[0]].main(arguments[1:])
        gc.collect()  # what is left behind is to be told of
        status = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


if __name__ == "__main__":
    from tests.helpers import producer_process, worker_process  # noqa: F401 - for the children
    from workers.storage.postgres import storage  # noqa: F401 - for the children

    with socket.socket(fileno=int(sys.argv[1])) as listening:
        _serve(listening)
