"""What a runner process tells the one that started it: a line of JSON each."""

from __future__ import annotations

import msgspec

__all__ = ["Finished", "Message", "News", "Orders", "Rescued", "Started", "decode"]


class Orders(msgspec.Struct, frozen=True, kw_only=True):
    """The command-line argument of a runner process."""

    name: str
    workers: int
    speed: float
    seed: int
    failures: bool


class Started(msgspec.Struct, frozen=True, tag=True):
    """A job was started, at this time of the machine's monotonic clock.

    It had failed `retries` times, and been rescued `crashes` times since it last did.
    """

    job: int
    at: float
    retries: int = 0
    crashes: int = 0


class Finished(msgspec.Struct, frozen=True, tag=True):
    """An attempt ended; `trouble` says why, and what follows, unless the job completed."""

    job: int
    trouble: str = ""


class Rescued(msgspec.Struct, frozen=True, tag=True):
    """The jobs of a dead runner were given back; `running` of them had begun, as far as it had told (the fleet knows)."""

    name: str
    jobs: int
    reason: str
    running: int | None = None


class News(msgspec.Struct, frozen=True, tag=True):
    """Something worth telling happened in the game."""

    text: str


Message = Started | Finished | Rescued | News
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)


def decode(line: bytes) -> Message:
    """Return the message that `line` holds."""
    return _decoder.decode(line)
