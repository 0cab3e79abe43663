"""Row 1: worker processes that are killed."""

from __future__ import annotations

import signal
import threading

from tests.faults.harness import Bench, Found, row
from tests.faults.judging import Kills, effects_once, started_again, swept_away
from tests.helpers.fault_jobs import EFFECTS, Brief, Effect
from tests.helpers.runners import eventually, left

_WORKERS, _TYPES = 10, "brief,effect"
#: That each job takes.
_SECONDS = 0.02
#: Guarantee 4: seconds until jobs of a killed worker start again.
_WITHIN = 3.0


@row(
    "1",
    "worker SIGKILL",
    "kill -9 of one of 4 worker processes at random moments: lost 0, twice at most what the killed ones had claimed, "
    "transactional effects exactly once, jobs of a killed worker start again within 3 s",
)
def killed_workers(bench: Bench) -> Found:
    jobs, kills = bench.pick(full=(10_000, 100), quick=(1_000, 10), tiny=(240, 3))
    found = Found(injected=kills, jobs=jobs)
    with bench.stage() as (_, conn, history, workers):
        conn.execute(EFFECTS)
        half = jobs // 2
        ids = [
            *Brief.enqueue_batch(conn, [Brief(key=key, seconds=_SECONDS) for key in range(half)]),
            *Effect.enqueue_batch(conn, [Effect(key=key, seconds=_SECONDS) for key in range(half)]),
        ]
        members = [workers.start(_TYPES, workers=_WORKERS) for _ in range(4)]
        for member in members:
            member.ready()
        killed, pause = Kills(), threading.Event()
        points = sorted(bench.chance.sample(range(1, jobs - kills), kills))
        for number, point in enumerate(points):
            # so many have begun, and then any moment of what the next one takes
            history.wait_for("start", count=point + number, seconds=120)
            pause.wait(bench.chance.uniform(0.0, _SECONDS))
            victim = members.pop(bench.chance.randrange(len(members)))
            killed.kill(victim, conn, history)
            members.append(workers.start(_TYPES, workers=_WORKERS))
        eventually(lambda: left(conn)["background_jobs"] == 0, 120)
        for member in members:
            member.ready()
            member.send(signal.SIGTERM)
        exits = [member.wait() for member in members]
        found.expect(exits == [0] * 4, f"the last workers ended with {exits}")

        events = history.events()
        in_flight = sum(len(claimed) for claimed in killed.claimed.values())
        found.judge(history.check(ids), duplicates=in_flight, by_kills=True)
        started_again(found, events, killed, within=_WITHIN * bench.margin)
        effects_once(found, conn, ids[half:])
        swept_away(found, conn, workers, _TYPES)
    return found
