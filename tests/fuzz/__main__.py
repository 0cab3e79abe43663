"""`python -m tests.fuzz [TARGET [OPTION...]]`: each target, or one, for a while; options are libFuzzer's (-help=1)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

#: Each runs for this many seconds, unless options say otherwise.
_OPTIONS = ["-max_total_time=30", "-max_len=4096", "-rss_limit_mb=2048"]
_RUN = "from tests.fuzz.__main__ import run; run()"


def run() -> None:
    """The target and the options that are this process's arguments. libFuzzer ends it."""
    import atheris

    with atheris.instrument_imports(include=["workers", "tests.fuzz"]):
        from tests.fuzz.targets import TARGETS
    name, *options = sys.argv[1:]
    atheris.Setup([f"fuzz-{name}", *options], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """Each target in a process of its own."""
    if find_spec("atheris") is None:
        print("No fuzzing by coverage: there is no atheris for this Python and system.")
        return 0
    from tests.fuzz.targets import SEEDS, TARGETS

    failed = 0
    for name in sys.argv[1:2] or TARGETS:
        # libFuzzer puts there, too, what led further
        with tempfile.TemporaryDirectory(prefix=f"workers-fuzz-{name}-") as corpus:
            for number, seed in enumerate(SEEDS[name]):
                Path(corpus, str(number)).write_bytes(seed)
            command = [sys.executable, "-c", _RUN, name, *(sys.argv[2:] or _OPTIONS), corpus]
            failed = subprocess.run(command, check=False).returncode or failed
    return failed


if __name__ == "__main__":
    sys.exit(main())
