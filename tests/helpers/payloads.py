"""Dataclasses with every kind of field that a payload may have."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal, NamedTuple, TypedDict

import msgspec
import pydantic


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    BIG = 1


class Mood(StrEnum):
    HAPPY = "happy"


class Point(NamedTuple):
    x: int
    y: int


class Flags(TypedDict, total=False):
    shiny: bool


class Node(msgspec.Struct):
    value: float = 0.0
    next: Node | None = None


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(strict=True)

    count: int
    when: datetime | None = None
    renamed: str = pydantic.Field(default="", alias="other")
    token: pydantic.SecretStr | None = None


@dataclass
class Inner:
    value: float = 0.0
    uncompared: float = field(default=0.0, compare=False)


@dataclass(kw_only=True)
class Job:
    text: str = ""
    number: int = 0
    ratio: float = 0.0
    anything: Any = None
    inner: Inner | None = None
    model: Model | None = None
    models: list[Model] = field(default_factory=list)
    node: Node | None = None
    sequence: Sequence[int] = ()
    numbers: set[int] = field(default_factory=set)
    blob: bytes = b""
    when: datetime | None = None
    day: date | None = None
    span: timedelta = timedelta()
    price: Decimal = Decimal(0)
    key: uuid.UUID | None = None
    colour: Colour = Colour.RED
    size: Size = Size.BIG
    point: Point | None = None
    flags: Flags = field(default_factory=lambda: Flags())
    counts: dict[str, int] = field(default_factory=dict)
    by_number: dict[int, str] = field(default_factory=dict)
    by_ratio: dict[float, str] = field(default_factory=dict)
    small: Annotated[int, msgspec.Meta(le=10)] = 0
    either: Literal["a", "b"] = "a"


@dataclass
class Odd:
    text: str

    def __eq__(self, other: object) -> bool:
        raise RuntimeError


@dataclass
class Holder:
    odd: Odd


class Unknown:
    pass


@dataclass
class WithUnknown:
    thing: list[Unknown]


@dataclass
class WithRaw:
    node: list[msgspec.Raw]


@dataclass
class WithUnion:
    thing: Unknown | int
