"""Connections of transactional jobs, where the server gives no more of them: both kinds get their turn. Rule 16."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import psycopg
import pytest
from psycopg import sql

from tests.helpers.role_users import dropped_roles, login, user_url
from workers.storage.postgres.kept_links import KeptLinks
from workers.storage.postgres.links import Link
from workers.storage.postgres.shelf import IDLE_SECONDS, Kept
from workers.storage.postgres.storage import PostgresStorage

PATIENCE = 10.0


@pytest.fixture
async def links(database_url: str, conn: psycopg.Connection) -> AsyncIterator[KeptLinks]:
    """Two connections are to be had."""
    with dropped_roles(conn) as prefix:
        name = f"{prefix}_limited"
        login(conn, name)
        limit = sql.SQL("ALTER ROLE {} CONNECTION LIMIT 2").format(sql.Identifier(name))
        conn.execute(limit)
        connector = PostgresStorage(user_url(database_url, name))._connector
        kept = KeptLinks(connector.connect, connector.connect_async)
        kept.open()
        yield kept
        kept.close()


def take_in_the_end(links: KeptLinks) -> Kept[Link]:
    """The server has to notice that a connection is closed."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            return links.take()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise


async def test_idle_ones_of_the_other_kind_make_room(links: KeptLinks) -> None:
    """They would stand in the way for a minute."""
    for _ in range(3):
        began = time.monotonic()
        held = [await links.take_async() for _ in range(2)]
        for kept in held:
            await links.give_back_async(kept, dirty=False)
        held_sync = [links.take() for _ in range(2)]
        for kept_sync in held_sync:
            links.give_back(kept_sync, dirty=False)
        assert time.monotonic() - began < IDLE_SECONDS / 2


async def test_one_that_comes_back_goes_where_the_other_kind_has_none(links: KeptLinks) -> None:
    """Jobs of one kind that never leave one idle must not keep those of the other from running for ever."""
    held = [await links.take_async() for _ in range(2)]
    with pytest.raises(psycopg.OperationalError):
        links.take()
    await links.give_back_async(held[0], dirty=False)
    assert held[0].link.closed
    kept = take_in_the_end(links)
    await links.give_back_async(held[1], dirty=False)
    assert not held[1].link.closed, "nobody is refused any more"
    links.give_back(kept, dirty=False)
