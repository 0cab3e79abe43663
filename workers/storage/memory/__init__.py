"""Jobs in memory: the reference model of the port, and what an application's own tests run on."""

from __future__ import annotations

from .storage import MemoryStorage

__all__ = ["MemoryStorage"]
