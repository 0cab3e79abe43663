"""How long a failed job waits."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.backoff import Exponential, Fixed, Linear, as_backoff
from workers.errors import ConfigurationError


def test_the_default_is_the_originals_with_a_cap_and_jitter() -> None:
    default = Exponential()
    assert (default.base, default.factor, default.cap, default.jitter) == (60, 2, 86_400, 0.1)
    plain = Exponential(jitter=0)
    assert [plain.delay(attempt) for attempt in (1, 2, 3, 4)] == [60, 120, 240, 480]
    assert plain.delay(12) == 86_400


@given(st.integers(min_value=-5, max_value=2**40))
def test_no_attempt_overflows(attempt: int) -> None:
    assert 0 <= Exponential(jitter=0).delay(attempt) <= 86_400
    assert 0 <= Exponential(factor=1e9, base=1, jitter=0).delay(attempt) <= 86_400
    assert 0 <= Exponential(factor=3, base=1, jitter=0).delay(attempt) <= 86_400


@given(st.integers(min_value=1, max_value=50))
def test_jitter_stays_within_its_share(attempt: int) -> None:
    middle = Exponential(jitter=0).delay(attempt)
    assert middle * 0.9 <= Exponential().delay(attempt) <= middle * 1.1


def test_jitter_spreads() -> None:
    assert len({Exponential().delay(1) for _ in range(20)}) > 1


def test_linear_and_fixed() -> None:
    assert [Linear(step=5).delay(attempt) for attempt in (1, 2, 3)] == [5, 10, 15]
    assert Linear(step=5, cap=12).delay(3) == 12
    assert [Linear(5, 12).delay(attempt) for attempt in (1, 3)] == [5, 12]
    assert Exponential(1.0, jitter=0).delay(2) == 2
    assert [Fixed(3).delay(attempt) for attempt in (1, 9)] == [3, 3]


def test_what_means_a_strategy() -> None:
    linear = Linear()
    assert as_backoff(linear) is linear
    assert as_backoff(7).delay(3) == 7
    assert as_backoff(timedelta(minutes=1)).delay(3) == 60
    assert as_backoff(lambda attempt: attempt * 2).delay(3) == 6
    assert as_backoff(lambda attempt: timedelta(hours=attempt)).delay(2) == 7200


@pytest.mark.parametrize(
    "value",
    [None, "5", True, object(), -1, math.nan, math.inf, Linear, dict, lambda: 3, 1e300],
)
def test_what_means_none(value: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"^backoff "):
        as_backoff(value)


@pytest.mark.parametrize(
    ("strategy", "settings"),
    [
        (Exponential, {"base": -1}),
        (Exponential, {"base": math.inf}),
        (Exponential, {"cap": math.nan}),
        (Exponential, {"factor": 0.5}),
        (Exponential, {"factor": math.nan}),
        (Exponential, {"jitter": 2}),
        (Exponential, {"jitter": -0.1}),
        (Linear, {"step": -1}),
        (Linear, {"cap": -1}),
        (Fixed, {"seconds": math.nan}),
        (Exponential, {"base": "1m"}),
        (Exponential, {"factor": "2"}),
        (Exponential, {"jitter": None}),
        (Exponential, {"cap": True}),
        (Linear, {"step": timedelta(1)}),
        (Fixed, {"seconds": 10**400}),
    ],
)
def test_wrong_settings(strategy: Any, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(settings))):
        strategy(**settings)
