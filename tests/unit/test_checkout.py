"""How the driver's errors become the port's."""

from __future__ import annotations

import contextlib
import gc
import weakref

from workers.errors import StorageUnavailableError
from workers.storage.postgres.checkout import translated


class _Statement:
    """What a failed statement had in hand."""


def test_an_error_that_was_dealt_with_keeps_nothing_alive() -> None:
    """A link, say, whose socket would stay open until the garbage collector comes."""

    def fail() -> weakref.ref[_Statement]:
        statement = _Statement()
        with contextlib.suppress(StorageUnavailableError), translated():
            raise OSError("the connection is gone")
        return weakref.ref(statement)

    gc.disable()
    try:
        assert fail()() is None
    finally:
        gc.enable()
