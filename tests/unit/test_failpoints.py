"""Failpoints: off they do nothing, and what is not understood is refused."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import workers
from workers import failpoints
from workers.storage.postgres.settling import KINDS

PROGRAM = "from workers.failpoints import hit; hit('claim'); hit('claimed'); print('once', flush=True); hit('claimed')"


def run(text: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={failpoints.VARIABLE: text},
        capture_output=True,
        text=True,
        check=False,
    )


def test_off() -> None:
    assert run("").returncode == 0
    assert failpoints.hit is failpoints.armed("")


def test_the_second_time() -> None:
    ended = run("claimed=kill@2,settle=kill")
    assert (ended.returncode, ended.stdout) == (-signal.SIGKILL, "once\n")


@pytest.mark.parametrize("text", ["claimed", "claimed=boom", "nowhere=kill", "claimed=kill@x"])
def test_nonsense_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not POINT=kill@N .* claimed, "):
        failpoints.armed(text)


def test_every_point_is_somewhere_in_the_code() -> None:
    sources = [path.read_text("utf-8") for path in Path(workers.__file__).parent.rglob("*.py")]
    used = {
        name for text in sources for name in re.findall(r'failpoints\.hit\(f?"([^"]+)"\)', text)
    }
    used.remove("settled {kind}")
    used |= {f"settled {kind}" for kind in KINDS} - {"settled complete"}
    assert used == set(failpoints.POINTS)
