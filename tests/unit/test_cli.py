"""Parts of the command line that need neither a process nor a database."""

from __future__ import annotations

import contextvars
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from workers.cli import logs
from workers.cli.command import one_line
from workers.cli.processes import Processes
from workers.errors import ConfigurationError
from workers.hiding import Hiding, hiding

WITHOUT = "import sys; sys.modules[sys.argv.pop()] = None; from workers.cli import main; main()"


@pytest.fixture
def root() -> Iterator[logging.Logger]:
    """The root logger; its level is restored afterwards."""
    logger = logging.getLogger()
    level = logger.level
    yield logger
    logger.setLevel(level)


def render(formatter: logging.Formatter, record: logging.LogRecord) -> str:
    record.created = 0.0
    return formatter.format(record)


@pytest.mark.parametrize("package", ["click", "rich"])
def test_missing_extra_is_named(package: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, package], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"Error: the command line needs more: pip install {package} (the extra `cli` of workers-pg)\n"
    )


def test_text_has_what_the_message_does_not_say() -> None:
    fields = {"job_id": 7, "job_type": "send", "queue": "emails", "attempt": 2, "session": 3}
    record = logging.makeLogRecord(
        {"name": "workers.jobs", "levelname": "INFO", "msg": "job 7 (send) snoozed", **fields}
    )
    assert (
        render(logs._Text(), record) == "1970-01-01T00:00:00.000+00:00 INFO workers.jobs: "
        "job 7 (send) snoozed  queue=emails attempt=2 session=3"
    )
    record.name = "shop"
    assert render(logs._Text(), record).endswith(
        "  job_id=7 job_type=send queue=emails attempt=2 session=3"
    )


def test_json_has_every_field_and_the_traceback_on_one_line() -> None:
    try:
        raise ValueError("at\npostgresql://shop:hunter2@db/shop")
    except ValueError:
        record = logging.makeLogRecord(
            {"name": "shop", "msg": "%s \ud800", "args": ("lost",), "exc_info": sys.exc_info()}
        )
    dsn = "postgresql://shop:hunter2@db/shop"
    record.__dict__ |= {"job_id": 7, "who": {1}, "dsn": {"old": [dsn]}, "new": OSError(dsn)}
    text = render(logs._Json(), record)
    assert text.count("\n") == 0
    entry = json.loads(text)
    assert entry["message"] == "lost \ud800"
    assert (entry["job_id"], entry["who"]) == (7, "{1}")
    assert "postgresql://shop:***@db/shop" in entry["exception"]
    assert entry["dsn"] == {"old": ["postgresql://shop:***@db/shop"]}
    assert "hunter2" not in text


def test_keys_that_json_does_not_have_are_texts() -> None:
    """The line would be lost."""
    sold = {("eu", 1): 2, 3: {None: "postgresql://shop:hunter2@db/shop"}, "at hunter2@db": 4}
    entry = json.loads(render(logs._Json(), logging.makeLogRecord({"msg": "sold", "sold": sold})))
    shown = {"('eu', 1)": 2, "3": {"None": "postgresql://shop:***@db/shop"}, "at hunter2@db": 4}
    assert entry["sold"] == shown


@pytest.mark.parametrize("formatter", [logs._Text(), logs._Json()])
def test_what_a_job_logs_has_none_of_its_secrets(formatter: logging.Formatter) -> None:
    """While its code runs; in a context of its own."""
    secret = Hiding('{"token": "canary-4711"}', frozenset({"token"}))
    record = logging.makeLogRecord({"msg": "with canary-4711", "extra": ["canary-4711"]})
    context = contextvars.copy_context()
    context.run(hiding.set, secret)
    assert "canary" not in context.run(render, formatter, record)
    assert "canary-4711" in render(formatter, record)


def test_loggers_that_the_application_has_disabled_are_heard(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `logging.config` does by default, with all that are there before."""
    ours = [logging.getLogger(name) for name in ("workers", "workers.jobs")]
    for logger in ours:
        monkeypatch.setattr(logger, "disabled", True)
    logs.configure(None, None)
    assert not any(logger.disabled for logger in ours)


def test_applications_handlers_stay_unless_asked(
    root: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = logging.NullHandler()
    monkeypatch.setattr(root, "handlers", [own])
    root.setLevel(logging.ERROR)
    logs.configure(None, None)
    assert (root.handlers, root.level) == ([own], logging.ERROR)
    logs.configure("debug", None)
    assert (root.handlers, root.level) == ([own], logging.DEBUG)
    logs.configure(None, "json")
    assert own not in root.handlers
    assert root.level == logging.INFO


def test_errors_take_one_line() -> None:
    assert one_line(ConfigurationError("a\n  b")) == "a b"
    assert one_line(OSError("disk")) == "OSError: disk"
    assert one_line(KeyError()) == "KeyError"


@pytest.mark.parametrize("call", ["run._leave(4)", "run._finish(4); run._leave(4)"])
def test_the_last_way_out_needs_no_thread(call: str) -> None:
    """There may be none to be had, which may be why the process is to end."""
    program = (
        "import threading\n"
        "from workers.cli import run\n"
        'def refuse(self): raise RuntimeError("can\'t start new thread")\n'
        "threading.Thread.start = refuse\n"
        f"{call}\n"
    )
    done = subprocess.run([sys.executable, "-c", program], timeout=60, check=False)
    assert done.returncode == 4


def test_no_module_of_the_current_directory_is_in_the_way_of_a_child(tmp_path: Path) -> None:
    """An application's own `workers`, or a module called like one of the standard library."""
    for name in ("workers.py", "queue.py", "select.py"):
        (tmp_path / name).write_text("raise ImportError('the wrong one')")
    command = Processes(1, ["--help"])._command
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
