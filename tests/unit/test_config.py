"""Settings are checked where they are given."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest

from workers.config import (
    QueueConfig,
    RunnerConfig,
    check_name,
    check_number,
    check_priority,
    seconds,
)
from workers.errors import ConfigurationError
from workers.job import Priority


def test_the_documented_defaults() -> None:
    queue, runner = QueueConfig(), RunnerConfig()
    assert (queue.num_workers, queue.poll_interval, queue.jitter) == (10, 1.0, 0.1)
    assert (runner.lease, runner.grace, runner.loop_stall_limit) == (15.0, 30.0, 60.0)
    assert runner.listen
    assert runner.name


def test_durations_are_kept_as_seconds() -> None:
    minute: Any = timedelta(minutes=1)
    assert QueueConfig(poll_interval=minute).poll_interval == 60.0
    assert RunnerConfig(grace=0, lease=minute).lease == 60.0
    assert isinstance(RunnerConfig(grace=5).grace, float)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": 0}, "num_workers is out of range: it must be from 1"),
        ({"num_workers": True}, "num_workers is a bool"),
        ({"num_workers": 1.5}, "num_workers is a float"),
        ({"poll_interval": 0}, "poll_interval is 0: it must be finite and above 0"),
        ({"poll_interval": math.inf}, "poll_interval is inf"),
        ({"poll_interval": "1"}, "poll_interval is a str: use seconds or a timedelta"),
        ({"jitter": -1}, "jitter is -1: it must be finite and 0 or more"),
        ({"jitter": math.nan}, "jitter is nan"),
        ({"jitter": True}, "jitter is a bool"),
        ({"poll_interval": timedelta(days=400)}, "poll_interval is over a year"),
    ],
)
def test_wrong_queue_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        QueueConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lease": 0}, "lease"),
        ({"lease": 0.5}, "at least 1 second"),
        ({"lease": 1e300}, "lease is over a year, which is too long"),
        ({"grace": 10**400}, "grace is over a year, which is too long"),
        ({"grace": -1}, "grace"),
        ({"loop_stall_limit": timedelta()}, "loop_stall_limit"),
        ({"listen": "no"}, "listen is a str"),
        ({"max_batch": 0}, "max_batch"),
        ({"name": ""}, "name must be 1 to 200 printable"),
        ({"name": "a\nb"}, "name must be"),
        ({"name": 7}, "name must be"),
    ],
)
def test_wrong_runner_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        RunnerConfig(**settings)


@pytest.mark.parametrize("name", ["a", "emails", "A.b_c:d-9", "x" * 100])
def test_names(name: str) -> None:
    assert check_name("queue", name) is name


@pytest.mark.parametrize(
    "name", ["", "a b", "a\n", "é", "x" * 101, "a/b", "\0", "'", 7, None, b"a"]
)
def test_what_is_no_name(name: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^queue is .* use 1 to 100") as caught:
        check_name("queue", name)
    assert len(str(caught.value)) < 250


def test_priorities_are_plain_smallints() -> None:
    assert type(check_priority("priority", Priority.CRITICAL)) is int
    assert [check_priority("p", value) for value in (-32768, 32767)] == [-32768, 32767]
    for value in (-32769, 32768, 1.0, True, "HIGH", None):
        with pytest.raises(ConfigurationError, match="p is"):
            check_priority("p", value)


def test_numbers_and_seconds() -> None:
    assert check_number("n", 5, 1) == 5
    assert seconds("s", 0) == 0.0
    assert seconds("s", timedelta(milliseconds=1)) == 0.001
    with pytest.raises(ConfigurationError, match="above 0"):
        seconds("s", 0, positive=True)
    with pytest.raises(ConfigurationError, match="NoneType"):
        seconds("s", None)
