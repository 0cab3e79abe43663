"""A network of its own for a worker process, whose address can be taken away: its links are half open then.

Needs Linux, `ip` and the rights to make a network namespace.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

__all__ = ["NETWORK", "FarEnd", "NoNamespaceError", "far_end"]

#: For tests of network devices, as RFC 2544 says: nobody's.
NETWORK = "198.18.0.0/15"
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


class NoNamespaceError(Exception):
    """A network namespace can't be made here; the message says why."""


class FarEnd:
    """A network namespace that reaches this machine at `near` and has the address `far`."""

    def __init__(self, name: str, near: str, far: str) -> None:
        self.name = name
        self.near = near
        self.far = far

    def take_address(self) -> None:
        """From now on nothing that is sent there is answered."""
        _ip("-n", self.name, "address", "flush", "dev", "far")

    @staticmethod
    def enter(name: str) -> None:
        """Put this process there, with all threads that it makes from now on."""
        with Path("/run/netns", name).open() as file:  # os.setns came with Python 3.12
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "can't enter the network namespace")


@contextlib.contextmanager
def far_end() -> Iterator[FarEnd]:
    """A new one, removed at the end. Raises NoNamespaceError."""
    number = next(_numbers)
    name = f"faults-{os.getpid()}-{number}"
    # a network of four addresses each, by the process and the number
    third, fourth = os.getpid() % 256, number % 64 * 4
    end = FarEnd(name, f"198.18.{third}.{fourth + 1}", f"198.18.{third}.{fourth + 2}")
    near = f"f{os.getpid()}-{number}"
    _ip("netns", "add", name)
    try:
        _ip("link", "add", near, "type", "veth", "peer", "name", "far", "netns", name)
        _ip("address", "add", f"{end.near}/30", "dev", near)
        _ip("link", "set", near, "up")
        _ip("-n", name, "address", "add", f"{end.far}/30", "dev", "far")
        _ip("-n", name, "link", "set", "far", "up")
        yield end
    finally:
        _ip("netns", "delete", name)  # the pair of devices goes with it


def _ip(*arguments: str) -> None:
    try:
        done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    except FileNotFoundError as error:
        raise NoNamespaceError("there is no `ip`") from error
    if done.returncode:
        raise NoNamespaceError(f"no network namespace can be had: {done.stderr.strip()}")
