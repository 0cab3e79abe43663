"""The targets of `python -m tests.fuzz`, on what they may begin with."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.targets import SEEDS, TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_finds_nothing(name: str) -> None:
    @given(st.binary())
    def check(data: bytes) -> None:
        TARGETS[name](data)

    for seed in SEEDS[name]:
        check = example(seed)(check)
    check()
