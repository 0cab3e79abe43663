"""The kinds of poison, in words that every library's table can be filled from.

A `Row` names one of the jobs that each script under `scripts/` has: `good` notes its number, `fail` raises, `again` raises
and is retried without a limit (or with the largest that the library takes), each time later. `payload` is what stands where
that library keeps its arguments.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

__all__ = ["KINDS", "LARGE", "Kind", "Row"]

GOOD, FAIL, AGAIN, UNKNOWN = "good", "fail", "again", "no_such_job"
DEEP = 6000
#: The machine has to hold it a few times: in the server, in the worker, as text and as objects.
LARGE = 100_000_000
_SMALL_MACHINE = 8_000_000_000
#: How often each row is written: more than a worker here runs at a time, so that one that loses a place with each stops.
_TIMES = 12


class Row(msgspec.Struct, frozen=True):
    """A job, as it is written. The rest stays at its default where it is None."""

    job: str
    payload: bytes
    attempts: int | None = None
    due: str | None = None  # a timestamp
    second: str | None = None  # for a column of JSON beside the arguments


class Kind(msgspec.Struct, frozen=True):
    """Rows that are written together, each of them so many `times`."""

    name: str
    label: str
    rows: list[Row]
    times: int = _TIMES

    @property
    def all_rows(self) -> list[Row]:
        """Each of them as often as it is to be written."""
        return self.rows * self.times


def _good(*payloads: str | bytes) -> list[Row]:
    return [Row(GOOD, text.encode() if isinstance(text, str) else text) for text in payloads]


def _field(value: str) -> str:
    """The arguments of a job that is like the good ones, but for this value of a field."""
    return f'{{"number": -1, "text": {value}}}'


def _fail(how: str) -> list[Row]:
    return [Row(FAIL, f'{{"how": "{how}"}}'.encode())]


def _again(attempts: int) -> Row:
    return Row(AGAIN, b'{"how": "plain"}', attempts=attempts)


def _large() -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return LARGE if free["MemAvailable"] > _SMALL_MACHINE else LARGE // 5


def _singles() -> list[Kind]:
    deep = "[" * DEEP + "]" * DEEP
    plain = b'{"number": -1}'
    return [
        Kind(
            "not_json", "not JSON, not UTF-8", _good("not JSON at all", b'\xff\xfe{"number": -1}')
        ),
        Kind(
            "shape",
            "arguments of the wrong shape",
            _good(
                "[1, 2]",
                "7",
                "null",
                '"text"',
                "{}",
                '{"number": -1, "surprise": 1}',
                '{"number": {"a": []}}',
            ),
        ),
        Kind(
            "second",
            "other JSON of the row of the wrong shape",
            [Row(GOOD, plain, second=text) for text in ("[1]", "7", "null", '"text"')],
        ),
        Kind(
            "unknown", "unknown job type", [Row(UNKNOWN, plain), Row("no.such.module.job", plain)]
        ),
        Kind("number", "`1e5000`", _good("1e5000", '{"number": 1e5000}')),
        Kind("digits", "a number of 400 digits", _good(f'{{"number": {"9" * 400}}}')),
        Kind(
            "text",
            "escaped lone surrogate, escaped NUL",
            _good(_field('"\\ud800"'), _field('"\\u0000"')),
        ),
        Kind("deep", "6,000 levels deep", _good(deep, _field(deep))),
        Kind(
            "large",
            "15 MB and 100 MB",
            _good(_field(f'"{"x" * 15_000_000}"'), _field(f'"{"x" * _large()}"')),
            1,
        ),
        Kind("attempts", "31 and 32 attempts", [_again(31), _again(32)]),
        Kind(
            "most_attempts",
            "2^15-1 and 2^31-1 attempts",
            [_again(2**15 - 1)] * _TIMES + [_again(2**31 - 1)],
            1,
        ),
        Kind("infinity", "due at `-infinity`", [Row(GOOD, plain, due="-infinity")]),
        Kind("past", "due in 44 BC", [Row(GOOD, plain, due="0044-03-15 BC")]),
        Kind("error_nul", "error text with NUL", _fail("nul")),
        Kind("error_surrogate", "error text with a lone surrogate", _fail("surrogate")),
        Kind("error_large", "error text of 20 MB", _fail("large"), 2),
        Kind("error_str", "error whose text can't be had", _fail("str")),
    ]


KINDS = {kind.name: kind for kind in _singles()}
KINDS["all"] = Kind(
    "all", "all together", [row for kind in KINDS.values() for row in kind.all_rows], 1
)
