"""`mypy --strict` accepts a user's program that uses the whole public face, and refuses what is wrong in it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "typing" / "user_program.py"


def test_a_users_program_passes_mypy_strict(tmp_path: Path) -> None:
    # its own configuration and cache: what the project allows itself does not count for its users
    config = tmp_path / "mypy.ini"
    config.write_text("[mypy]\nstrict = true\nwarn_unreachable = true\n")
    command = [sys.executable, "-m", "mypy", "--config-file", str(config)]
    root = PROGRAM.parents[2]
    command += ["--cache-dir", str(root / ".mypy_cache" / "user_program"), str(PROGRAM)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert done.returncode == 0, done.stdout + done.stderr
