"""What is kept out of logs, stored errors, telemetry and tracebacks: marked fields of payloads, and passwords.

    class ResetPassword(BackgroundJob):
        token: Secret[str]

The value of such a field is a plain str to its job. It is looked for only where something has gone wrong.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import dataclasses
import json
import re
import typing
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import date, datetime
from functools import cached_property
from typing import Annotated, Any, TypeAlias, TypeVar
from urllib.parse import quote, quote_plus

import msgspec

from .errors import RegistrationError

__all__ = ["HIDDEN", "Hiding", "Secret", "hiding", "secret_fields", "without_passwords"]

T = TypeVar("T")

#: What stands in the place of a value.
HIDDEN = "***"
_HIDDEN_JSON = msgspec.Raw(f'"{HIDDEN}"'.encode())
#: Instead of a text, where looking for values in it would take too long.
_TOO_MUCH = "(not shown: too much to look for secrets in)"
#: The most texts that are looked for, and the most characters that are looked at for all of them together.
_MOST_FORMS, _MOST_WORK = 2000, 50_000_000
#: Shorter texts, and numbers, are hidden where they stand alone: a secret "e" does not take every e along.
_SHORT = 4
#: Lines of a longer text are looked for one by one, as they may be indented.
_LINE = 8
#: Keys of so many characters are no names of fields; so long is a date.
_LONG_NAME, _DATE = 16, 10

_RUN = re.compile(r"\S+")
_USER = re.compile(r"://[^\s:/@]*:")
#: What stands before a password in the other form of a connection string, and in the repr of a dict.
_KEY = re.compile(r"""password(?:\s*+=\s*+|["']\s*+:\s*+)""", re.IGNORECASE)
#: In quotes; to the end of the line where they are not closed.
_QUOTED = re.compile(r"""'(?:[^'\\\n]++|\\.)*+'|"(?:[^"\\\n]++|\\.)*+"|['"][^\n]*+""")
_WORD = re.compile(r"[^\s&]+")


class _Mark:
    def __repr__(self) -> str:
        return "Secret"


_MARK = _Mark()

#: `token: Secret[str]` is a str to type checkers and to the job, and *** wherever the job is shown.
Secret: TypeAlias = Annotated[T, _MARK]

#: Set while the code of a job that has marked fields runs.
hiding: ContextVar[Hiding] = ContextVar("workers_hiding")


# Fields -----------------------------------------------------------------------------------------


def secret_fields(job_class: type) -> frozenset[str]:
    """The fields of `job_class`, a dataclass whose annotations are resolved, with a mark in them, at any depth."""
    fields = dataclasses.fields(job_class)
    return frozenset(
        field.name
        for field in fields
        if _is_marked(field.type, f"{job_class.__qualname__}.{field.name}")
    )


def _is_marked(annotation: object, place: str) -> bool:
    """Raises RegistrationError for a mark without a type, which is no type to decode."""
    open_, seen = [annotation], set()
    while open_:
        item = open_.pop()
        if item is Secret:
            name = place.rpartition(".")[2]
            raise RegistrationError(
                f"{place}: Secret needs a type: write `{name}: Secret[str]` and give the plain value"
            )
        if item is _MARK or any(part is Secret for part in getattr(item, "__metadata__", ())):
            return True
        if id(item) in seen:
            continue
        seen.add(id(item))
        open_ += getattr(item, "__metadata__", ())
        open_ += typing.get_args(item)
        for inner in (typing.get_origin(item), getattr(item, "__value__", None)):
            if inner is not None:
                open_.append(inner)
        if isinstance(item, type) and item.__module__ != "builtins":
            open_ += _annotations(item)
    return False


def _annotations(kind: type) -> list[object]:
    """Of a dataclass, a model and the like."""
    try:
        return list(typing.get_type_hints(kind, include_extras=True).values())
    except Exception:  # what can't be looked into is not shown
        return [_MARK]


# Texts ------------------------------------------------------------------------------------------


class Hiding:
    """Takes what stands in the fields `names` of the payload `data` out of texts.

    It is found as it is, and as Python, JSON and URLs quote it; not in pieces, and not under other guises.
    """

    def __init__(self, data: str, names: frozenset[str]) -> None:
        self._given = data
        self._names = names

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
        for name in self._names & self._parts.keys():
            for leaf in _leaves(bytes(self._parts[name])):
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


def _leaves(raw: bytes) -> Iterator[str]:
    """The texts and numbers in a piece of JSON, and keys, but for those that look like names of fields."""
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
            open_ += [key for key in value if not _is_name(key)]
            open_ += value.values()
        elif isinstance(value, list):
            open_ += value
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield str(value)


def _is_name(key: str) -> bool:
    """Hidden, each `name` in a text would be; what has digits or is long is rather a token."""
    return key.isidentifier() and len(key) < _LONG_NAME and not any(map(str.isdigit, key))


def _forms_of(leaf: str) -> Iterator[str]:
    """How `leaf` may be written: by itself, in parts that may be indented, and as the bytes that it stands for."""
    yield from _quoted(leaf)
    yield from _quoted(leaf.strip())
    if "\n" in leaf:
        for line in leaf.splitlines():
            if len(line := line.strip()) >= _LINE:
                yield from _quoted(line)
    with contextlib.suppress(ValueError):
        moment = date.fromisoformat(leaf) if len(leaf) == _DATE else datetime.fromisoformat(leaf)
        yield from (str(moment), repr(moment), moment.isoformat())
    if len(leaf) >= _SHORT:
        try:
            blob = base64.b64decode(leaf, validate=True)
        except (binascii.Error, ValueError):
            return
        yield from _quoted(repr(blob)[2:-1])
        yield from _quoted(blob.decode("utf-8", "backslashreplace"))


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
