"""What is kept out of logs, stored errors, telemetry and tracebacks: marked fields of payloads, and passwords.

    class ResetPassword(BackgroundJob):
        token: Secret[str]

The value of such a field is a plain str to its job. It is looked for only where something has gone wrong.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import re
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import date, datetime, time
from functools import cached_property
from typing import Any
from urllib.parse import quote, quote_plus

import msgspec

from .marks import Secret, key_names, secret_fields

__all__ = [
    "HIDDEN",
    "Hiding",
    "Secret",
    "hiding",
    "secret_fields",
    "without_passwords",
]

#: What stands in the place of a value.
HIDDEN = "***"
_HIDDEN_JSON = msgspec.Raw(f'"{HIDDEN}"'.encode())
#: Instead of a text, where looking for values in it would take too long.
_TOO_MUCH = "(not shown: too much to look for secrets in)"
#: The most texts that are looked for, and the most characters that are looked at for all of them together.
_MOST_FORMS, _MOST_WORK = 2000, 50_000_000
#: Shorter texts, and numbers, are hidden where they stand alone: a secret "e" does not take every e along.
_SHORT = 4
#: What is shorter is no base64: three bytes, or fewer and what fills them up.
_BASE64 = 4
#: The shortest line of a longer text, which may be indented, and the shortest piece of base64, that is looked for.
_LINE = 8

_TIME = re.compile(r"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d")
_RUN = re.compile(r"\S+")
_USER = re.compile(r"://[^\s:/@]*:")
#: What stands before a password in the other form of a connection string, and in the repr of a dict.
_KEY = re.compile(r"""password(?:\s*+=\s*+|["']\s*+:\s*+)""", re.IGNORECASE)
#: In quotes; to the end of the line where they are not closed.
_QUOTED = re.compile(r"""'(?:[^'\\\n]++|\\.)*+'|"(?:[^"\\\n]++|\\.)*+"|['"][^\n]*+""")
_WORD = re.compile(r"[^\s&]+")

#: Set while the code of a job that has marked fields runs.
hiding: ContextVar[Hiding] = ContextVar("workers_hiding")


# Texts ------------------------------------------------------------------------------------------


class Hiding:
    """Takes what stands in the fields `names` of the payload `data` out of texts.

    It is found as it is, and as Python, JSON, URLs and base64 write it; not in pieces, and not under other guises. The keys
    in it are, too, but for those that are names of fields: `job_class` has them.
    """

    def __init__(self, data: str, names: frozenset[str], job_class: type | None = None) -> None:
        self._given = data
        self._names = names
        self._job_class = job_class

    @cached_property
    def _parts(self) -> dict[str, msgspec.Raw]:
        try:
            return _PARTS.decode(self._given)
        except Exception:  # nobody could decode it, so nothing of it is known to anybody
            return {}

    @cached_property
    def data(self) -> str:
        """The payload without them."""
        parts = {
            name: _HIDDEN_JSON if name in self._names else part
            for name, part in self._parts.items()
        }
        return msgspec.json.encode(parts).decode()

    @cached_property
    def _forms(self) -> list[str] | None:
        """What to look for, the longest first; None where it is too much."""
        forms: set[str] = set()
        known = frozenset() if self._job_class is None else key_names(self._job_class)
        for name in self._names & self._parts.keys():
            for leaf in _leaves(bytes(self._parts[name]), known):
                forms.update(_forms_of(leaf))
                if len(forms) > _MOST_FORMS:
                    return None
        return sorted(forms, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        """`text` without them."""
        if (forms := self._forms) is None or len(text) * len(forms) > _MOST_WORK:
            return _TOO_MUCH
        for form in forms:
            if form not in text:
                continue
            if len(form) < _SHORT or _is_number(form):
                text = re.sub(rf"(?<![\w.]){re.escape(form)}(?!\w)", HIDDEN, text)
            else:
                text = text.replace(form, HIDDEN)
        return text


_PARTS = msgspec.json.Decoder(dict[str, msgspec.Raw])


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+.\deE]+", text) is not None


def _leaves(raw: bytes, known: frozenset[str]) -> Iterator[str]:
    """The texts and numbers in a piece of JSON, and the keys but those that are `known`."""
    try:
        open_: list[object] = [msgspec.json.decode(raw)]
    except Exception:  # numbers that only some types can hold, or too deep
        yield raw.decode()
        return
    while open_:
        value = open_.pop()
        if isinstance(value, str):
            if value.strip():
                yield value
        elif isinstance(value, dict):
            open_ += [key for key in value if key not in known]
            open_ += value.values()
        elif isinstance(value, list):
            open_ += value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield str(value)


def _forms_of(leaf: str) -> Iterator[str]:
    """How `leaf` may be written: by itself, in parts that may be indented, and as the bytes that it stands for."""
    yield from _quoted(leaf)
    yield from _quoted(leaf.strip())
    if "\n" in leaf:
        for line in leaf.splitlines():
            if len(line := line.strip()) >= _LINE:
                yield from _quoted(line)
    for text in (*_times(leaf), *_bytes(leaf)):
        yield from _quoted(text)
    yield from _in_base64(leaf)


def _bytes(leaf: str) -> tuple[str, ...]:
    """The bytes that `leaf` may stand for, as Python shows them and as text."""
    if len(leaf) < _BASE64:
        return ()
    try:
        blob = base64.b64decode(leaf, validate=True)
    except (binascii.Error, ValueError):
        return ()
    return (repr(blob)[2:-1], blob.decode("utf-8", "backslashreplace")) if blob.strip() else ()


def _in_base64(leaf: str) -> Iterator[str]:
    """What base64 writes for `leaf`, by itself or behind other bytes: all that does not depend on what is beside it."""
    raw = leaf.encode("utf-8", "backslashreplace")
    forms = [base64.b64encode(raw).decode()]
    for before, shared in enumerate((0, 2, 3)):
        whole = 8 * (before + len(raw)) // 6
        forms.append(base64.b64encode(bytes(before) + raw).decode()[shared:whole])
    for form in forms:
        if len(form) >= _LINE:
            yield from (form, form.replace("+", "-").replace("/", "_"))


def _times(leaf: str) -> Iterator[str]:
    """The date or time that `leaf` may stand for, as Python shows it. What a time zone looks like is up to its library."""
    if _TIME.match(leaf) is None:
        return
    for kind in (date, datetime, time):
        try:
            value = kind.fromisoformat(leaf)
        except ValueError:
            continue
        yield from (str(value), value.isoformat())
        if isinstance(value, datetime | time):
            bare = repr(value.replace(tzinfo=None))[:-1]
            yield from (bare, bare.partition("(")[2])
        else:
            yield repr(value)


def _quoted(text: str) -> Iterator[str]:
    yield from (text, quote(text), quote(text, safe=""), quote_plus(text))
    forms = {text}
    for _ in range(2):  # an exception may quote what was quoted when it was told
        forms |= {quoted for form in forms for quoted in _in_quotes(form)}
    yield from forms


def _in_quotes(text: str) -> tuple[str, ...]:
    """What Python and JSON have between quotes for it. repr() chooses its quotes by what else is inside."""
    bare = repr(text)[1:-1].replace("\\'", "'")
    as_json = (json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
    return bare, bare.replace("'", "\\'"), *as_json


def without_passwords(text: str) -> str:
    """`text` without the passwords of connection strings. In linear time: the text may be anybody's."""
    if "://" in text and "@" in text:
        text = _RUN.sub(_without_password, text)
    if "password" in text.lower():
        text = _without_values(text)
    return text


def _without_password(match: re.Match[str]) -> str:
    """A password may hold what should have been quoted in it, so it ends at the last @."""
    run = match[0]
    end = run.rfind("@")
    if end < 0 or (user := _USER.search(run, 0, end)) is None:
        return run
    return f"{run[: user.end()]}{HIDDEN}{run[end:]}"


def _without_values(text: str) -> str:
    """Each key counts, also one inside of what looks like the value of another: quotes may be anybody's."""
    parts, end = [], 0
    for key in _KEY.finditer(text):
        start = key.end()
        value = _QUOTED.match(text, start)
        if value is None and start >= end:  # else it ends where the word does that it is in
            value = _WORD.match(text, start)
        if value is None or value.end() <= end:
            continue
        if start >= end:
            parts += [text[end:start], HIDDEN]
        end = value.end()
    return "".join([*parts, text[end:]])


def shown(value: Any, names: frozenset[str] | None) -> str:
    """The repr of a job, a dataclass; without the values of the fields `names`, or of any where those are not known."""
    parts = [
        f"{field.name}={HIDDEN if names is None or field.name in names else repr(getattr(value, field.name, None))}"
        for field in dataclasses.fields(value)
        if field.repr
    ]
    return f"{type(value).__qualname__}({', '.join(parts)})"
