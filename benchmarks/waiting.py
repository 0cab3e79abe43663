"""Waiting for something that nobody announces."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["until"]


async def until(condition: Callable[[], bool], seconds: float, every: float = 0.005) -> bool:
    """Wait until `condition()` holds, for `seconds` at most; whether it does."""
    end = time.perf_counter() + seconds
    while not condition():
        if time.perf_counter() >= end:
            return False
        await asyncio.sleep(every)
    return True
