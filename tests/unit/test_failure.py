"""Error texts that any store can hold. Rule 15, fault 7."""

from __future__ import annotations

import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from workers.job import in_short
from workers.runtime.failure import MAX_ERROR, describe, storable, told


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


def test_words_before_a_traceback() -> None:
    """They are in the first line, however long the rest; that is what the error says in one line."""
    for error in (ValueError("x" * 10 * MAX_ERROR), ExceptionGroup("two", [ValueError()])):
        try:
            raise error
        except Exception as raised:
            text = told(raised, words="it took too long")[0]
        assert text.startswith("it took too long\n")
        assert len(text) <= MAX_ERROR
        assert in_short(text) == "it took too long"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        ("", ""),
        ("alone\n", "alone"),
        ("Traceback (most recent call last):\n  File\nValueError: no\n", "ValueError: no"),
        ("  + Exception Group Traceback (most recent call last):\n  | E: 1", "| E: 1"),
        ("somebody\nelse's", "else's"),
        (
            "the policy failed, after:\nTraceback (most recent call last):\n  File\nE: no",
            "the policy failed, after: E: no",
        ),
    ],
)
def test_an_error_in_short(error: str, said: str) -> None:
    assert in_short(error).strip() == said


def test_an_exception_that_was_never_raised() -> None:
    assert describe(ValueError("loose")) == "ValueError: loose\n"


class BadClass(Exception):  # noqa: N818
    @property
    def __cause__(self) -> BaseException | None:  # type: ignore[override]
        raise SystemExit


def test_an_exception_that_misbehaves() -> None:
    """Nothing that it does when it is asked escapes."""
    assert "BadClass" in describe(BadClass("x"))


def test_what_can_not_be_looked_at_is_not_shown() -> None:
    """There may be secrets in it."""

    class PrivateError(Exception):
        @property
        def __notes__(self) -> list[str]:  # type: ignore[override]
            raise ZeroDivisionError

    text, shown = told(PrivateError("s3cret"), lambda text: text.replace("s3cret", "***"))
    assert "its own text can't be had" in text
    assert "s3cret" not in f"{text}{shown!r}{shown}"


def test_a_long_chain_of_causes() -> None:
    error: BaseException = ValueError("last")
    for number in range(3000):
        following = ValueError(number)
        following.__cause__ = error
        error = following
    text = describe(error)
    assert len(text) <= MAX_ERROR
    assert text.endswith("ValueError: 2999\n")


@pytest.mark.parametrize("text", ["x" * 10_000_000, "x\n" * 5_000_000, "é\ud800" * 5_000_000])
def test_a_huge_text_is_cut_before_it_is_formatted(text: str) -> None:
    """Of what a cause, a note or a member of a group says too."""
    error = ExceptionGroup("begin" + text, [ValueError(text), SyntaxError(text)])
    error.__cause__ = KeyError(text)
    error.add_note(text)
    error.add_note("the last note")
    began = time.process_time()
    described = describe(error)
    # to format the lines alone takes seconds
    assert time.process_time() - began < 1
    assert len(described) <= 6 * MAX_ERROR
    assert described.startswith("KeyError: ")
    alone = describe(ValueError(f"begin{text}end"))
    assert alone.startswith("ValueError: begin")
    assert alone.count("characters ...]") == 1
    assert alone.endswith("end\n")
