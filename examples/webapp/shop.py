"""The shop: its tables, and the job that works for it."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool

from workers import BackgroundJob

__all__ = ["SCHEMA", "SendReceipt", "Shop"]

logger = logging.getLogger("shop")

SCHEMA = """
CREATE TABLE IF NOT EXISTS shop_stock (
    item   text    PRIMARY KEY,
    pieces integer NOT NULL
);
CREATE TABLE IF NOT EXISTS shop_orders (
    id       bigserial PRIMARY KEY,
    email    text      NOT NULL,
    item     text      NOT NULL,
    quantity integer   NOT NULL,
    receipt  text
);
INSERT INTO shop_stock VALUES ('potion', 100), ('poke ball', 250), ('master ball', 1)
ON CONFLICT DO NOTHING;
"""


class Shop:
    """What handlers and jobs need: the context of the runner."""

    def __init__(self, pool: AsyncConnectionPool) -> None:
        self.pool = pool
        #: Set at the next receipt, by whichever job of this process writes it.
        self.next_receipt = asyncio.Event()

    async def orders(self, order_id: int | None = None) -> list[dict[str, Any]]:
        """Return one order, or all of them."""
        async with self.pool.connection() as conn, conn.cursor(row_factory=dict_row) as cursor:
            query = "SELECT * FROM shop_orders WHERE id = coalesce(%s, id) ORDER BY id"
            return await (await cursor.execute(query, [order_id])).fetchall()

    async def stock(self) -> dict[str, int]:
        """Return how many pieces of each item are left."""
        async with self.pool.connection() as conn:
            cursor = await conn.execute("SELECT item, pieces FROM shop_stock ORDER BY item")
            return dict(await cursor.fetchall())


async def place_order(
    conn: psycopg.AsyncConnection[Any], email: str, item: str, quantity: int
) -> int:
    """Write an order; return its id."""
    cursor = await conn.execute(
        "INSERT INTO shop_orders (email, item, quantity) VALUES (%s, %s, %s) RETURNING id",
        [email, item, quantity],
    )
    return int((await cursor.fetchall())[0][0])


async def take_from_stock(conn: psycopg.AsyncConnection[Any], item: str, quantity: int) -> bool:
    """Take what was ordered; return whether there was enough."""
    cursor = await conn.execute(
        "UPDATE shop_stock SET pieces = pieces - %(quantity)s WHERE item = %(item)s AND pieces >= %(quantity)s",
        {"item": item, "quantity": quantity},
    )
    return cursor.rowcount == 1


class SendReceipt(BackgroundJob[Shop]):
    """Send the receipt for an order. "Sent" is a text in the order's row, so that one can see it."""

    queue = "emails"

    order_id: int

    async def run(self, ctx: Shop) -> None:
        # A job runs at least once: here the condition makes a second run change nothing.
        async with ctx.pool.connection() as conn:
            sent = await conn.execute(
                "UPDATE shop_orders SET receipt = format('%%s: %%s x %%s', email, quantity, item) "
                "WHERE id = %s AND receipt IS NULL",
                [self.order_id],
            )
        if sent.rowcount:
            logger.info("sent the receipt for order %d", self.order_id)
        ctx.next_receipt.set()
        ctx.next_receipt = asyncio.Event()
