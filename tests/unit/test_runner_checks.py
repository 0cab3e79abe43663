"""What a runner says of its own settings before it works, on an engine that needs no server."""

from __future__ import annotations

import pytest

from workers import BackgroundJob, ConfigurationError, Runner
from workers.storage.memory import MemoryStorage


class Plain(BackgroundJob[None]):
    async def run(self, ctx: None) -> None: ...


class SendInvoice(BackgroundJob[None]):
    transactional = True

    async def run(self, ctx: None) -> None: ...


class SendReceipt(SendInvoice):
    pass


async def test_transactional_types_need_an_engine_with_transactions() -> None:
    """Else each such job would fail, and wait for its next attempt."""
    runner = Runner(MemoryStorage(), None).register_job_type(Plain).register_job_type(SendInvoice)
    message = r"^SendInvoice is transactional, and the engine MemoryStorage has no transactions: .*PostgreSQL.*directly"
    with pytest.raises(ConfigurationError, match=message):
        runner.start()
    with pytest.raises(ConfigurationError, match=message):
        await runner.run()
    runner.register_job_type(SendReceipt)
    with pytest.raises(ConfigurationError, match=r"^SendInvoice and SendReceipt are transactional"):
        runner.start()


async def test_other_types_run_on_any_engine() -> None:
    runner = Runner(MemoryStorage(), None).register_job_type(Plain).shutdown_when_queue_empty()
    assert await runner.start().wait_for_shutdown() == []
