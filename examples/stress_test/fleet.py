"""The runner processes: started, listened to, killed and replaced."""

from __future__ import annotations

import asyncio
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable
from itertools import count
from pathlib import Path
from random import Random

import msgspec

from .messages import Finished, Message, Orders, Rescued, Started, decode
from .options import Options

__all__ = ["Fleet", "kill_moments"]

ROOT = Path(__file__).parents[2]


class Child:
    """One runner process. `running`: the jobs that it runs, as far as it has told."""

    def __init__(self, name: str, process: Process) -> None:
        self.name = name
        self.process = process
        self.running: set[int] = set()
        self.killed = False


class Fleet:
    """Keeps the runner processes going until `stop`. Each of `hear` gets what they tell, `say` what happens to them."""

    def __init__(
        self,
        dsn: str,
        options: Options,
        hear: list[Callable[[Message], None]],
        say: Callable[[str], None],
    ) -> None:
        self._environment = os.environ | {"DATABASE_URL": dsn}
        self._options = options
        self._hear = hear
        self._say = say
        self._numbers = count(1)
        self._children: set[Child] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stopping = False
        self._dice = Random(options.seed)
        self._kills = kill_moments(self._dice, options)
        self._finished = 0
        #: How many jobs each killed runner was running, once all that it told has been read.
        self._left: dict[str, int] = {}
        self.killed = 0
        #: What made the run pointless: a runner that ended by itself.
        self.trouble = ""

    async def start(self) -> None:
        """Start the processes."""
        for _ in range(self._options.runners):
            await self._spawn()

    async def stop(self) -> None:
        """Let running jobs finish, and wait until all processes have ended."""
        self._stopping = True
        self.terminate()
        while self._tasks:
            await asyncio.wait(self._tasks)

    def terminate(self) -> None:
        """Send SIGTERM to all; the second time they don't let their jobs finish."""
        for child in self._children:
            if child.process.returncode is None:
                child.process.terminate()

    async def _spawn(self) -> None:
        name = f"runner-{next(self._numbers)}"
        given = self._options
        orders = Orders(
            name=name,
            workers=given.workers,
            speed=given.speed,
            seed=given.seed,
            failures=given.failures,
        )
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "examples.stress_test.runner", msgspec.json.encode(orders)),
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
            cwd=ROOT,
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for this process alone, which then says SIGTERM
        )
        task = asyncio.create_task(self._tend(Child(name, process)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _tend(self, child: Child) -> None:
        """Listen to `child` until it ends; put another in its place when it was killed."""
        self._children.add(child)
        if self._stopping:  # it was just being started
            child.process.terminate()
        await asyncio.gather(self._listen(child), self._relay(child))
        code = await child.process.wait()
        self._children.discard(child)
        if self._stopping:
            return
        if child.killed:
            self._left[child.name] = len(child.running)
            await self._spawn()
        else:
            self.trouble = self.trouble or f"{child.name} ended by itself, with status {code}"

    async def _listen(self, child: Child) -> None:
        assert child.process.stdout is not None
        async for line in child.process.stdout:
            if not line.endswith(b"\n"):  # killed in the middle of it
                return
            message = decode(line)
            match message:
                case Started(job=job):
                    child.running.add(job)
                case Finished(job=job):
                    child.running.discard(job)
                    self._finished += 1
                case Rescued(name=name):
                    message = msgspec.structs.replace(message, running=self._left.get(name))
            for hear in self._hear:
                hear(message)
            if self._kills and self._finished >= self._kills[0]:
                self._kills.pop(0)
                # not at the very moment at which a job ended
                asyncio.get_running_loop().call_later(self._dice.uniform(0, 0.1), self._kill_one)

    async def _relay(self, child: Child) -> None:
        assert child.process.stderr is not None
        async for line in child.process.stderr:
            self._say(f"{child.name}: {line.decode(errors='replace').rstrip()}")

    def _kill_one(self) -> None:
        alive = sorted(
            (child for child in self._children if not child.killed), key=lambda child: child.name
        )
        if alive and not self._stopping:
            child = self._dice.choice([child for child in alive if child.running] or alive)
            child.killed = True
            child.process.kill()
            self.killed += 1
            self._say(f"killed {child.name} with {len(child.running)} jobs running")


def kill_moments(dice: Random, options: Options) -> list[int]:
    """Return after how many ended attempts to kill: at random, but early enough that deduplicated jobs are not missed."""
    return sorted(
        dice.randint(options.jobs // 20, options.jobs // 2) for _ in range(options.kill_workers)
    )
