"""Installs of the library in directories of their own: as it is, and as the next version might be.

Each is a wheel, built from a copy of this tree and installed by pip with `--target`. The next version has a migration more,
statements that need it, with which its producers and runners say who they are, another version number, and a module with
further job types beside it: see tests/helpers/next_version.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import workers

__all__ = ["Install", "install_next", "install_this"]

_ROOT = Path(__file__).parents[2]
_NEXT = Path(__file__).parent / "next_version"
_VERSION = workers.__version__
_QUERIES = "workers/storage/postgres/queries"
#: What is different in the next version: in which file, what, and what stands there instead.
_CHANGES = (
    ("pyproject.toml", f'version = "{_VERSION}"', f'version = "{_VERSION}+next"'),
    ("workers/__init__.py", f'__version__ = "{_VERSION}"', f'__version__ = "{_VERSION}+next"'),
    (f"{_QUERIES}/open_session.sql", "worker_sessions (id,", "worker_sessions (release, id,"),
    (f"{_QUERIES}/open_session.sql", "VALUES (", "VALUES ('next', "),
    (
        f"{_QUERIES}/enqueue_batch.sql",
        "background_jobs (job_type,",
        "background_jobs (origin, job_type,",
    ),
    (f"{_QUERIES}/enqueue_batch.sql", "SELECT %(job_type)s", "SELECT 'next', %(job_type)s"),
)


@dataclass(frozen=True, slots=True)
class Install:
    """`folder` has the package `workers`. `release`: what stands in the next version's columns of rows that its runners and
    producers write. `migration`: its newest one."""

    folder: Path
    release: str
    migration: str

    @property
    def environment(self) -> dict[str, str]:
        """With this, `import workers` in an interpreter is this one, and `tests` are this tree's, wherever it is started."""
        return {"PYTHONPATH": f"{self.folder}{os.pathsep}{_ROOT}", "PYTHONSAFEPATH": "1"}

    @property
    def library(self) -> str:
        """`workers.__file__` there."""
        return str(self.folder / "workers" / "__init__.py")

    def python(self, *words: str, database_url: str) -> subprocess.Popen[str]:
        """Start an interpreter of its own."""
        return subprocess.Popen(
            [sys.executable, *words],
            env=os.environ | self.environment | {"DATABASE_URL": database_url},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def install_this(folder: Path) -> Install:
    """The library as it is."""
    source = _copied(folder)
    return _installed(folder, source, "old")


def install_next(folder: Path) -> Install:
    """The next version."""
    source = _copied(folder)
    for name, what, instead in _CHANGES:
        text = (source / name).read_text("utf-8")
        if text.count(what) != 1:
            raise RuntimeError(f"{name} no longer says {what!r} once: adapt {__file__}")
        (source / name).write_text(text.replace(what, instead), "utf-8")
    number = int(_newest(source / "migrations")[:4]) + 1
    shutil.copy(_NEXT / "next.sql", source / "migrations" / f"{number:04}_next.sql")
    install = _installed(folder, source, "next")
    shutil.copy(_NEXT / "next_jobs.py", install.folder)
    return install


def _copied(folder: Path) -> Path:
    source = folder / "source"
    source.mkdir(parents=True)
    for name in ("workers", "migrations"):
        leave_out = shutil.ignore_patterns("__pycache__")
        shutil.copytree(_ROOT / name, source / name, ignore=leave_out)
    for path in (_ROOT / "pyproject.toml", _ROOT / "README.md", *_ROOT.glob("LICENSE*")):
        shutil.copy(path, source)
    return source


def _installed(folder: Path, source: Path, release: str) -> Install:
    target = folder / "site"
    offline = ("--no-deps", "--no-index", "--no-build-isolation", "--disable-pip-version-check")
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        *offline,
        "--target",
        str(target),
        str(source),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"pip could not install {source}: {done.stdout}{done.stderr}")
    return Install(target, release, _newest(target / "workers" / "migrations"))


def _newest(migrations: Path) -> str:
    return max(path.stem for path in migrations.glob("[0-9]*.sql"))
