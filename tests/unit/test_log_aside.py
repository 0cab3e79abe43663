"""Logging that nobody has to wait for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import pytest

from workers.log_aside import Aside

PATIENCE = 20.0
NAME = "workers.test_log_aside"

whose: ContextVar[str] = ContextVar("whose", default="nobody's")


class Stuck(logging.Handler):
    """Hangs, with its lock held, until `free`."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()
        self.entered = threading.Event()
        self.seen: list[tuple[logging.LogRecord, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.entered.set()
        assert self.free.wait(PATIENCE)
        self.seen.append((record, whose.get()))


@pytest.fixture
def handler() -> Iterator[Stuck]:
    logger, stuck = logging.getLogger(NAME), Stuck()
    logger.addHandler(stuck)
    logger.setLevel(logging.INFO)
    yield stuck
    stuck.free.set()
    logger.removeHandler(stuck)
    logger.setLevel(logging.NOTSET)


def test_records_are_as_always(handler: Stuck) -> None:
    handler.free.set()
    log = Aside(NAME)
    whose.set("mine")
    log.debug("not wanted")
    try:
        raise ZeroDivisionError
    except ZeroDivisionError:
        log.exception("%d of %s", 1, "two", extra={"session": 7})
    log.flush(PATIENCE)
    ((record, context),) = handler.seen
    assert (record.name, record.levelname, record.getMessage()) == (NAME, "ERROR", "1 of two")
    assert record.__dict__["session"] == 7
    assert (record.filename, record.funcName) == ("test_log_aside.py", "test_records_are_as_always")
    assert record.thread == threading.get_ident()
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError
    assert context == "mine"


def test_a_handler_that_hangs_is_not_waited_for_and_the_order_stays(handler: Stuck) -> None:
    other = threading.Thread(target=logging.getLogger(NAME).info, args=["holds the lock"])
    other.start()
    assert handler.entered.wait(PATIENCE)
    log = Aside(NAME)
    for number in range(50):
        log.info("%d", number)
    log.flush(0)
    assert handler.seen == []
    handler.free.set()
    log.flush(PATIENCE)
    other.join(PATIENCE)
    said = [record.getMessage() for record, _ in handler.seen]
    assert said == ["holds the lock", *map(str, range(50))]


def test_without_another_thread_it_says_it_itself(
    handler: Stuck, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    handler.free.set()
    monkeypatch.setattr(threading.Thread, "start", start)
    Aside(NAME).info("out of threads")
    assert [record.getMessage() for record, _ in handler.seen] == ["out of threads"]
