"""Transactional jobs that write one row, `INSERT`, and then do what their test asks for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import psycopg

from tests.helpers.running import World
from workers import BackgroundJob, Cancel, Snooze, current_job

__all__ = ["EFFECTS", "INSERT", "KINDS", "Effect", "EffectInThread"]

EFFECTS = "SELECT job FROM effects ORDER BY 1"
INSERT = b"INSERT INTO effects VALUES (%s)"
WRONG = b"SELECT 1/0"


class Effect(BackgroundJob[World]):
    """Writes one row, then does what its test asks for."""

    transactional = True
    backoff = 1000
    timeout = 30
    then: str = "return"

    async def run(self, ctx: World) -> None:
        job = current_job()
        conn: psycopg.AsyncConnection[Any] = job.connection
        await conn.execute(INSERT, [job.id])
        ctx.note(conn.info.backend_pid)
        match self.then:
            case "raise":
                raise ValueError("after the effect")
            case "exit":
                raise SystemExit
            case "cancel":
                raise Cancel("not wanted")
            case "snooze":
                raise Snooze(1000)
            case "sql error":
                await conn.execute(WRONG)
            case "swallowed sql error":
                with contextlib.suppress(psycopg.Error):
                    await conn.execute(WRONG)
            case "nested":
                with contextlib.suppress(psycopg.Error):
                    async with conn.transaction():
                        await conn.execute(WRONG)
            case "commit":
                await conn.commit()
            case "rollback":
                await conn.rollback()
            case "sql commit":
                await conn.execute(b"COMMIT")
            case "close":
                await conn.close()
            case "cancel itself":
                task = asyncio.current_task()
                assert task is not None
                task.cancel()
            case "wait":
                ctx.signal("written")
                await ctx.wait("may end")


class EffectInThread(BackgroundJob[World]):
    transactional = True
    backoff = 1000
    timeout = 30
    then: str = "return"

    def run(self, ctx: World) -> Any:
        job = current_job()
        conn: psycopg.Connection[Any] = job.connection
        conn.execute(INSERT, [job.id])
        ctx.note(conn.info.backend_pid)
        match self.then:
            case "raise":
                raise ValueError("after the effect")
            case "exit":
                raise SystemExit
            case "cancel":
                raise Cancel("not wanted")
            case "snooze":
                raise Snooze(1000)
            case "sql error":
                conn.execute(WRONG)
            case "swallowed sql error":
                with contextlib.suppress(psycopg.Error):
                    conn.execute(WRONG)
            case "nested":
                with contextlib.suppress(psycopg.Error), conn.transaction():
                    conn.execute(WRONG)
            case "commit":
                conn.commit()
            case "rollback":
                conn.rollback()
            case "sql commit":
                conn.execute(b"COMMIT")
            case "close":
                conn.close()
            case "wait":
                ctx.signal("written")
                ctx.wait_in_thread("may end")


KINDS: list[type[Effect] | type[EffectInThread]] = [Effect, EffectInThread]
