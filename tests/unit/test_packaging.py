"""What an installation consists of."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """The names of the files in a wheel that is built from this tree."""
    target = tmp_path_factory.mktemp("dist")
    build = [
        sys.executable,
        "-m",
        "hatchling",
        "build",
        "--target",
        "wheel",
        "--directory",
        str(target),
    ]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (built,) = target.glob("workers_pg-*.whl")
    with ZipFile(built) as archive:
        return set(archive.namelist())


def test_wheel_has_the_migrations(wheel: set[str]) -> None:
    in_repository = {
        f"workers/migrations/{path.name}" for path in (ROOT / "migrations").glob("*.sql")
    }
    assert in_repository
    assert {name for name in wheel if name.startswith("workers/migrations/")} == in_repository


def test_wheel_has_every_file_of_the_package(wheel: set[str]) -> None:
    sources = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "workers").rglob("*")
        if path.suffix in {".py", ".sql", ".typed"}
    }
    assert "workers/py.typed" in sources
    assert sources <= wheel


def test_wheel_has_nothing_else(wheel: set[str]) -> None:
    assert {name.split("/")[0].partition("-")[0] for name in wheel} == {"workers", "workers_pg"}


def test_version_is_the_distributions() -> None:
    import workers

    assert workers.__version__ == version("workers-pg")


def test_editable_install_reads_the_migrations_of_the_repository() -> None:
    from workers import migrations

    in_repository = {path.stem: path.read_bytes() for path in (ROOT / "migrations").glob("0*.sql")}
    assert {m.name: m.sql for m in migrations._load()} == in_repository
