"""What is fuzzed: functions of bytes, which raise for what must not be."""

from __future__ import annotations

import msgspec

from tests.helpers.payloads import Job
from workers.codec import Codec
from workers.dsn import read_dsn
from workers.errors import ConfigurationError, InvalidJobError
from workers.hiding import Hiding, without_passwords
from workers.runtime.failure import MAX_ERROR, storable

__all__ = ["TARGETS"]

_codec = Codec(Job, "thing")
_PASSWORD = "hunter2"
_FORMS = (
    f"postgresql://shop:{_PASSWORD}@db:5432/shop?sslmode=require",
    f"host=db password={_PASSWORD} dbname=shop",
    f"host=db password='{_PASSWORD} {_PASSWORD}'",
    f"{{'host': 'db', 'password': '{_PASSWORD}'}}",
)


def decode(data: bytes) -> None:
    """Bytes are a job, or no job; what is one comes back as it is, or is refused."""
    try:
        job = _codec.decode(data)
        text = _codec.encode(job)
    except InvalidJobError:
        return
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
