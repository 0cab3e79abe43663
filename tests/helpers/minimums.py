"""Run the tests with the oldest versions that pyproject.toml allows of what the library uses, in an environment apart.

What only the tests use is the newest. Arguments are pytest's.
"""

from __future__ import annotations

import subprocess
import sys
import tomllib
import venv
from pathlib import Path

_ROOT = Path(__file__).parents[2]
_PLACE = _ROOT / ".venv-minimums"
#: Extras of the library's own; the others are for its development.
_EXTRAS = ("binary", "cli", "pydantic", "uvloop")
#: Plugins of pytest are as old as all else, and may use what the newest pytest warns of.
_NO_ERRORS = ("-o", "filterwarnings=default")


def pins() -> list[str]:
    """The requirements, each at its lowest."""
    project = tomllib.loads((_ROOT / "pyproject.toml").read_text())["project"]
    wanted = list(project["dependencies"])
    for extra in _EXTRAS:
        wanted += project["optional-dependencies"][extra]
    return [requirement.replace(">=", "==") for requirement in wanted]


def main() -> int:
    """Returns pytest's exit code."""
    venv.create(_PLACE, with_pip=True, clear=True)
    python = str(_PLACE / "bin" / "python")
    install = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check"]
    subprocess.run([*install, "--editable", f"{_ROOT}[dev]", *pins()], check=True)
    return subprocess.run(
        [python, "-m", "pytest", *_NO_ERRORS, *sys.argv[1:]], cwd=_ROOT
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
