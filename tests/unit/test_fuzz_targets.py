"""The targets of `python -m tests.fuzz`, on what they may begin with."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_finds_nothing(name: str) -> None:
    @given(st.binary())
    @example(b'{"text": "hunter3", "number": 1}\0hunter3')
    @example(b"postgresql://a:b@c")
    @example(b"password='")
    def check(data: bytes) -> None:
        TARGETS[name](data)

    check()
