"""What is fuzzed: functions of bytes, which raise for what must not be."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from tests.helpers.payloads import Job, Node
from workers.codec import Codec
from workers.dsn import read_dsn
from workers.errors import ConfigurationError, InvalidJobError
from workers.hiding import Hiding, without_passwords
from workers.runtime.failure import MAX_ERROR, storable

__all__ = ["TARGETS"]

_codec = Codec(Job, "thing")
_GOOD = _codec.encode(
    Job(text="é", number=7, anything=[{"a": 1.5}], node=Node(1.0, Node()), when=datetime.now(UTC))
).encode()
_PASSWORD = "hunter2"
_FORMS = (
    f"postgresql://shop:{_PASSWORD}@db:5432/shop?sslmode=require",
    f"host=db password={_PASSWORD} dbname=shop",
    f"host=db password='{_PASSWORD} {_PASSWORD}'",
    f"{{'host': 'db', 'password': '{_PASSWORD}'}}",
)


def decode(data: bytes) -> None:
    """Bytes are a job, or no job; what is one comes back as it is, or is refused. So are those of a job with a change."""
    # the decoder is no Python, so that no coverage leads to what it takes
    at, length = int.from_bytes(data[:2]) % len(_GOOD), int.from_bytes(data[2:3])
    for raw in (data, _GOOD[:at] + data[3:] + _GOOD[at + length :]):
        try:
            text = _codec.encode(_codec.decode(raw))
        except InvalidJobError:
            continue
        assert _codec.encode(_codec.decode(text)) == text


def redact(data: bytes) -> None:
    """A password is found in a connection string, whatever stands around it."""
    text = data.decode("utf-8", "surrogateescape")
    if _PASSWORD in text:
        return
    for form in _FORMS:
        assert _PASSWORD not in without_passwords(f"{text} {form} {text}")
    try:
        read_dsn(f"postgresql://shop:{_PASSWORD}@{text}")
    except ConfigurationError as error:
        said = str(error)
        assert _PASSWORD not in said


def hide(data: bytes) -> None:
    """Any row can be shown without its secrets, and any text be stored without them."""
    row, _, text = data.decode("utf-8", "surrogateescape").partition("\0")
    hidden = Hiding(row, frozenset({"text"}))
    shown = msgspec.json.decode(hidden.data, type=dict[str, msgspec.Raw])
    assert bytes(shown.get("text", b'"***"')) == b'"***"'
    stored = storable(text, hidden)
    assert len(stored) <= 6 * MAX_ERROR
    assert "\0" not in stored
    stored.encode()


TARGETS = {target.__name__: target for target in (decode, redact, hide)}
