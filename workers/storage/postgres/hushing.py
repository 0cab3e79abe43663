"""Housekeeping where the server has no room left for notifications. They are a help: nothing else may depend on them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from ...errors import StorageError
from .checkout import is_notify_queue_full

__all__ = ["HUSHED", "HUSHED_SECONDS", "notifying"]

#: For so long none are sent afterwards.
HUSHED_SECONDS = 60.0
HUSHED = (
    "the server has no room left for notifications, as somebody who listens has been in a transaction for long: "
    "this runner's housekeeping does without for %g s"
)


class _Hushable(Protocol):
    def hush(self) -> None: ...


_P = ParamSpec("_P")
_T = TypeVar("_T")
_H = TypeVar("_H", bound=_Hushable)


def notifying(work: Callable[Concatenate[_H, _P], _T]) -> Callable[Concatenate[_H, _P], _T]:
    """A method that is done again, without notifications, where they were what failed."""

    @functools.wraps(work)
    def insisted(self: _H, /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        try:
            return work(self, *args, **kwargs)
        except StorageError as error:
            if not is_notify_queue_full(error.__cause__):
                raise
        self.hush()
        return work(self, *args, **kwargs)

    return insisted
