"""Row 25: random sequences of operations, on PostgreSQL and in memory."""

from __future__ import annotations

from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.faults.harness import Bench, Found, row
from tests.storage.engines import PostgresEngine
from tests.storage.test_model import Machine


@row("25", "stateful model", "any sequence of operations has the same effects in both engines")
def engines_agree(bench: Bench) -> Found:
    sequences = bench.pick(full=2_000, quick=20, tiny=2)
    with (
        bench.database() as url,
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(PostgresEngine.opened(url)) as engine,
    ):
        machine = type("ThisMachine", (Machine,), {"portal": portal, "postgres": engine})
        run_state_machine_as_test(
            seed(bench.chance.getrandbits(32))(machine),
            settings=settings(
                max_examples=sequences,
                stateful_step_count=40,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
                phases=[Phase.generate, Phase.shrink],
                print_blob=True,
            ),
        )
    return Found(injected=sequences, jobs=0)
