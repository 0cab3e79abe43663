"""A PostgreSQL proxy on loopback that misbehaves when told to: it loses replies, holds them back, cuts and freezes links.

It reads the protocol's message frames, no more: which statement a link executes, and when its reply ends. The reply to a
statement in autocommit ends with ReadyForQuery, which comes after the commit; a proxy that swallows the reply and cuts the
link leaves the client without knowledge of a write that has happened.
"""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

from psycopg.conninfo import conninfo_to_dict

from tests.helpers.history import PATIENCE
from tests.helpers.server import connection_url

__all__ = ["Proxy", "Trap", "proxy_to"]


class Trap:
    """What is done to the replies to statements whose text contains `text`, `times` times over."""

    def __init__(self, text: str, times: int, holds: bool, rows: bool) -> None:
        self.text = text
        self.left = times
        self.rows = rows
        #: True: the reply waits until `release`. False: it is lost, and the link is cut.
        self.holds = holds
        self._changed = threading.Condition()
        self._sprung = 0
        self._released = asyncio.Event()

    def catches(self, reply: list[tuple[bytes, bytes]]) -> bool:
        """Whether the reply, which is complete, is one to be caught: what the statement does is done."""
        return self.left > 0 and (not self.rows or any(kind == b"D" for kind, _ in reply))

    def spring(self) -> None:
        """One more was caught."""
        self.left -= 1
        with self._changed:
            self._sprung += 1
            self._changed.notify_all()

    def wait(self, times: int = 1) -> None:
        """Wait until it has caught as many replies."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._sprung >= times, PATIENCE):
                raise TimeoutError(f"no {times} replies to {self.text!r} came by")

    async def held(self) -> None:
        """Wait for the release. On the proxy's loop."""
        await self._released.wait()

    def release(self) -> None:
        """Pass on what is held, and stop catching. On the proxy's loop."""
        self.left = 0
        self._released.set()


class Proxy:
    """Listens on a free port of 127.0.0.1. Its methods may be called from any thread."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._links: set[_Link] = set()
        self._traps: list[Trap] = []
        self._thawed = asyncio.Event()
        self._thawed.set()
        self._refusing = False
        self._server: asyncio.Server | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._thread.start()
        self._call(self._start)

    def stop(self) -> None:
        """Close everything."""
        self._call(self._stop)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        """A URL that leads through this proxy."""
        assert self._server is not None
        port = self._server.sockets[0].getsockname()[1]
        return connection_url(
            self._dsn, host="127.0.0.1", port=str(port), sslmode="disable", gssencmode="disable"
        )

    def lose_reply(self, text: str, *, times: int = 1, rows: bool = False) -> Trap:
        """Cut the link of a statement that contains `text` when its reply is complete, and pass nothing of it on.

        `rows`: only if the reply has any.
        """
        return self._set(Trap(text, times, holds=False, rows=rows))

    def hold_reply(self, text: str, *, times: int = 1, rows: bool = False) -> Trap:
        """Pass nothing of the reply to such a statement on before `release`."""
        return self._set(Trap(text, times, holds=True, rows=rows))

    def release(self, trap: Trap) -> None:
        """Pass on what `trap` holds."""
        self._loop.call_soon_threadsafe(trap.release)

    def freeze(self) -> None:
        """Pass nothing on, in either direction, on any link: as when a cable is pulled."""
        self._loop.call_soon_threadsafe(self._thawed.clear)

    def thaw(self) -> None:
        """Pass on what came in the meantime, and all that follows."""
        self._loop.call_soon_threadsafe(self._thawed.set)

    def cut(self, text: str = "") -> None:
        """Cut every link, or those on which a statement is being executed that contains `text`."""
        self._call(lambda: self._cut(text))

    def garble(self) -> None:
        """Send on every link what can't be a message of the server's."""
        self._call(self._garble)

    def _set(self, trap: Trap) -> Trap:
        self._call(lambda: self._arm(trap))
        return trap

    async def _arm(self, trap: Trap) -> None:
        self._traps.append(trap)
        # the server may be at such a statement, and yet see what the caller does next
        for link in self._links:
            link.fall()

    def _call(self, function: Callable[[], Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(function(), self._loop).result(PATIENCE)

    async def _garble(self) -> None:
        for link in self._links:
            link.garble()

    async def _start(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _stop(self) -> None:
        assert self._server is not None
        self._server.close()
        await self._cut()

    async def _cut(self, text: str = "") -> None:
        links = [link for link in self._links if text in link.executing]
        for link in links:
            link.cut()
        if links:
            await asyncio.wait([link.task for link in links])

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        with contextlib.suppress(OSError):
            server_reader, server_writer = await self._connect()
            link = _Link(task, (reader, writer), (server_reader, server_writer), self)
            self._links.add(link)
            try:
                await link.run()
            finally:
                self._links.discard(link)
        writer.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        given = conninfo_to_dict(self._dsn)
        host, port = str(given.get("host") or "127.0.0.1"), given.get("port") or 5432
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, int(port))

    def trap_for(self, statement: str) -> Trap | None:
        """The trap that `statement` falls into."""
        return next((trap for trap in self._traps if trap.left and trap.text in statement), None)

    async def passable(self) -> None:
        """Wait while everything is frozen."""
        await self._thawed.wait()


_Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class _Link:
    """One client's connection."""

    def __init__(
        self, task: asyncio.Task[Any], client: _Stream, server: _Stream, proxy: Proxy
    ) -> None:
        self.task = task
        self._client_reader, self._client_writer = client
        self._server_reader, self._server_writer = server
        self._proxy = proxy
        self._prepared: dict[bytes, str] = {}
        self._bound = ""
        #: The statement that the server is at.
        self.executing = ""
        self._trap: Trap | None = None

    def fall(self) -> None:
        """Into a trap, if there is one for what is being executed."""
        self._trap = self._trap or self._proxy.trap_for(self.executing)

    def cut(self) -> None:
        """Break it, on both sides, without a word."""
        self._client_writer.transport.abort()
        self._server_writer.transport.abort()

    def garble(self) -> None:
        """Tell the client of a notification of two bytes, which its length alone takes four of."""
        self._client_writer.write(b"A" + struct.pack("!i", 2))

    async def run(self) -> None:
        """Pass messages on until one side ends."""
        tasks = [asyncio.create_task(self._upstream()), asyncio.create_task(self._downstream())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._client_writer.close()
            self._server_writer.close()

    async def _upstream(self) -> None:
        """From the client to the server."""
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            await self._startup()
            while True:
                kind, message = await _message(self._client_reader)
                self._note(kind, message[5:])
                await self._pass(self._server_writer, message)

    async def _startup(self) -> None:
        """The first message has a length, but no type. (The URL rules out encryption, which would come before it.)"""
        head = await self._client_reader.readexactly(4)
        (length,) = struct.unpack("!i", head)
        rest = await self._client_reader.readexactly(length - 4)
        await self._pass(self._server_writer, head + rest)

    def _note(self, kind: bytes, body: bytes) -> None:
        """Follow which statement is executed."""
        if kind == b"P":
            name, query, _ = body.split(b"\0", 2)
            self._prepared[name] = query.decode(errors="replace")
        elif kind == b"B":
            _, name, _ = body.split(b"\0", 2)
            self._bound = self._prepared.get(name, "")
        elif kind == b"E" or kind == b"Q":
            self.executing = self._bound if kind == b"E" else body.decode(errors="replace")
            self.fall()

    async def _downstream(self) -> None:
        """From the server to the client."""
        reply: list[tuple[bytes, bytes]] = []
        with contextlib.suppress(asyncio.IncompleteReadError, OSError):
            while True:
                kind, message = await _message(self._server_reader)
                trap = self._trap
                if kind == b"Z":
                    self.executing = ""
                if trap is None:
                    await self._pass(self._client_writer, message)
                    continue
                reply.append((kind, message))
                if kind != b"Z":
                    continue
                if trap.catches(reply):
                    if not trap.holds:
                        self.cut()
                        trap.spring()
                        return
                    trap.spring()
                    await trap.held()
                self._trap = None
                await self._pass(self._client_writer, b"".join(part for _, part in reply))
                reply = []

    async def _pass(self, writer: asyncio.StreamWriter, message: bytes) -> None:
        await self._proxy.passable()
        writer.write(message)
        await writer.drain()


async def _message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """One message: its type, and the whole of it."""
    head = await reader.readexactly(5)
    (length,) = struct.unpack("!i", head[1:])
    return head[:1], head + await reader.readexactly(length - 4)


@contextlib.contextmanager
def proxy_to(dsn: str) -> Iterator[Proxy]:
    """A proxy in front of the server that `dsn` names."""
    proxy = Proxy(dsn)
    proxy.start()
    try:
        yield proxy
    finally:
        proxy.stop()
