"""`python -m tests.fuzz [TARGET [OPTION...]]`: each target, or one, for a while; options are libFuzzer's (-help=1)."""

from __future__ import annotations

import subprocess
import sys

#: Each runs for this many seconds, unless options say otherwise.
_OPTIONS = ["-max_total_time=60", "-max_len=4096", "-rss_limit_mb=2048"]


def _run(name: str, options: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["workers", "tests.fuzz"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([f"fuzz-{name}", *(options or _OPTIONS)], TARGETS[name])
    atheris.Fuzz()


def main() -> int:
    """One target here, several in processes of their own: libFuzzer ends the one that it runs in."""
    try:
        import atheris  # noqa: F401
    except ImportError:
        print("Fuzzing by coverage takes more: .venv/bin/python -m pip install atheris")
        return 0
    if len(sys.argv) > 1:
        _run(sys.argv[1], sys.argv[2:])
        return 0
    from tests.fuzz.targets import TARGETS

    command = [sys.executable, "-m", "tests.fuzz"]
    return max(subprocess.run([*command, name], check=False).returncode for name in TARGETS)


if __name__ == "__main__":
    sys.exit(main())
