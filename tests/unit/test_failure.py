"""Error texts that any store can hold. Rule 15, fault 7."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.runtime.failure import MAX_ERROR, describe, storable


@given(st.text(st.characters(codec=None), max_size=50))
@example("half a pair \ud83d, and a NUL \x00")
def test_any_text_can_be_stored(text: str) -> None:
    """No NUL, no lone surrogates; what was fine stays as it is."""
    stored = storable(text)
    assert "\x00" not in stored
    encoded = stored.encode()  # which raises for a lone surrogate
    if "\x00" not in text and text.encode("utf-8", "replace") == encoded:
        assert stored == text


@pytest.mark.parametrize("size", [MAX_ERROR, MAX_ERROR + 1, 10 * MAX_ERROR, 5_000_000])
def test_long_texts_keep_their_beginning_and_end(size: int) -> None:
    """The end is where the cause stands."""
    text = "begin" + "x" * (size - 8) + "end"
    stored = storable(text)
    assert len(stored) <= MAX_ERROR
    assert stored.startswith("begin")
    assert stored.endswith("end")
    assert (stored == text) == (size <= MAX_ERROR)


def test_what_escaping_makes_longer_is_bounded_too() -> None:
    assert len(storable("\ud800" * 100_000)) <= 6 * MAX_ERROR
    assert len(storable("\x00" * 100_000)) <= 4 * MAX_ERROR


def test_a_traceback() -> None:
    try:
        try:
            raise KeyError("inner")
        except KeyError as error:
            raise ValueError("outer") from error
    except ValueError as error:
        text = describe(error)
    assert text.startswith("Traceback (most recent call last)")
    assert "KeyError: 'inner'" in text
    assert text.endswith("ValueError: outer\n")
    assert "test_failure.py" in text


def test_an_exception_that_was_never_raised() -> None:
    assert describe(ValueError("loose")) == "ValueError: loose\n"


class BadClass(Exception):  # noqa: N818
    @property
    def __cause__(self) -> BaseException | None:  # type: ignore[override]
        raise SystemExit


def test_an_exception_that_misbehaves() -> None:
    """Nothing that it does when it is asked escapes."""
    assert "BadClass" in describe(BadClass("x"))


def test_a_long_chain_of_causes() -> None:
    error: BaseException = ValueError("last")
    for number in range(3000):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    text = describe(error)
    assert len(text) <= MAX_ERROR
    assert text.endswith("ValueError: 2999\n")
