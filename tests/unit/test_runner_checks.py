"""What a runner says of its own settings before it works, on an engine that needs no server."""

from __future__ import annotations

import logging

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


class Mail(Plain):
    queue = "emails"


@pytest.mark.parametrize(
    ("name", "level", "hint"),
    [("emials", "WARNING", "; did you mean 'emails'?"), ("urgent", "INFO", "")],
)
async def test_a_queue_that_no_type_declares_is_named_at_the_start(
    caplog: pytest.LogCaptureFixture, name: str, level: str, hint: str
) -> None:
    """It may be meant, for `enqueue(queue=...)`; a slip is likelier where a declared one is called nearly the same."""
    caplog.set_level(logging.INFO, "workers")
    runner = Runner(MemoryStorage(), None).register_job_type(Mail).configure_queue("emails")
    runner.configure_queue(name, num_workers=2).shutdown_when_queue_empty()
    assert "declares" not in caplog.text
    await runner.start().wait_for_shutdown()
    told = [(r.levelname, r.getMessage()) for r in caplog.records if "declares" in r.getMessage()]
    text = f"queue '{name}' is worked, but no registered type declares it; jobs reach it only by enqueue(queue=...)"
    assert told == [(level, text + hint)]
