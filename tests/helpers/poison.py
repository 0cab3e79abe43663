"""Jobs of type `Parcel` that can't be decoded, that nobody knows, or that the library would not have written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["BY_API", "BY_FUNCTION", "DEAD", "FAR", "HOSTILE", "REFUSED", "UNKNOWN"]

_DEEP = "[" * 6000 + "]" * 6000
FAR = 2**31 - 1

#: Payloads that jsonb holds and that no Parcel is; and what is said of them.
DEAD = {
    "number": ("1e5000", "out of range"),
    "a number in a field": ('{"number": 1e5000}', "`number`"),
    "a number anywhere": ('{"anything": [1e5000]}', "`anything[0]`"),
    "infinite": ('{"ratio": 1e400}', "`ratio`"),
    "deep": (_DEEP, "expected `object`"),
    "deep in a field": (f'{{"text": {_DEEP}}}', "`text`"),
    "deep anywhere": (f'{{"anything": {_DEEP}}}', "too deep"),
    "deep and unknown": ('{"other": ' + '{"a":' * 6000 + "1" + "}" * 6000 + "}", "too deep"),
    "null": ("null", "expected `object`"),
    "array": ("[1, 2]", "expected `object`"),
    "string": ('"text"', "expected `object`"),
    "wrong type": ('{"number": "seven"}', "`number`"),
    "fraction": ('{"number": 1.5}', "`number`"),
    "not a number": ('{"ratio": "NaN"}', "`ratio`"),
    "too large for anything": ('{"number": ' + "9" * 5000 + "}", "`number`"),
}
#: What the server takes from nobody, not even by SQL.
REFUSED = {
    "nul": r"""'{"text": "a\u0000b"}'""",
    "surrogate": r"""'{"text": "a\ud800b"}'""",
    "nan": "'NaN'",
    "nan in a field": """'{"ratio": NaN}'""",
    "100 MB": "jsonb_build_object('text', repeat('x', 100000000))",
    "20 MB written out": "(SELECT jsonb_agg(1e100000) FROM generate_series(1, 200))",
    "too large a number": "'1e200000'",
    "60,000 levels": "(repeat('[', 60000) || repeat(']', 60000))::jsonb",
}
#: Valid jobs in hostile rows: they run.
HOSTILE: tuple[dict[str, Any], ...] = (
    {"retries": 31},
    {"retries": 32},
    {"retries": FAR},
    {"retries": -(2**31)},
    {"priority": 32767, "run_at": "-infinity"},
    {"priority": -32768, "created_at": "infinity", "last_retry": "-infinity"},
    {"created_at": "-infinity", "last_retry": "infinity", "last_error": "\x01\x1b[31m\u2028"},
    {"queue": None, "crashes": 4},
    {"data": f'{{"text": "{"x" * 10_000_000}"}}'},
)
#: Types that nobody knows.
UNKNOWN = (
    "unknown",
    "'; DROP TABLE background_jobs; --",
    "parcel ",
    "Parcel",
    "%s %(x)s {0}",
    "é\u2028\n\t",
    "x" * 400,
)
#: What the library refuses, and what it says.
BY_API: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "nul": (lambda: {"text": "a\0b"}, "NUL"),
    "surrogate": (lambda: {"text": "a\ud800b"}, "lone surrogate"),
    "surrogate in a key": (lambda: {"anything": {"\ud800": 1}}, "lone surrogate"),
    "1e5000": (lambda: {"number": 10**5000}, "too many digits"),
    "deep": (lambda: {"anything": nested(6000)}, "too deep"),
    "101 levels": (lambda: {"anything": nested(100)}, "100 levels deep"),
    "wrong type": (lambda: {"number": "seven"}, "`number`"),
    "object": (lambda: {"anything": object()}, "`anything`"),
    "100 MB": (lambda: {"text": "x" * 100_000_000}, "100,0"),
    "nan": (lambda: {"ratio": float("nan")}, "NaN"),
    "infinity anywhere": (lambda: {"anything": [float("inf")]}, "Infinity"),
}
#: What the SQL function refuses, with its own words.
BY_FUNCTION = (
    """'parcel', ('{"anything": ' || repeat('[', 100) || repeat(']', 100) || '}')::jsonb""",
    "'parcel', jsonb_build_object('text', repeat('x', 1048576))",
    "'parcel', '[1]'",
    "'parcel ', '{}'",
    "'parcel', '{}', 'a queue'",
    "'parcel', '{}', 'default', 32768",
)


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels - 1):
        value = [value]
    return value
