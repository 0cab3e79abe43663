"""The application: requests enqueue in their own transaction, and a runner beside them runs what was committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from psycopg_pool import AsyncConnectionPool
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from workers import Runner, migrate

from .shop import SCHEMA, SendReceipt, Shop, place_order, take_from_stock

__all__ = ["create_app"]


def create_app(database_url: str) -> Starlette:
    """Return the application on the database `database_url`, in which it makes its tables."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        async with AsyncConnectionPool(database_url, open=False) as pool:
            async with pool.connection() as conn:
                await migrate(conn)
                await conn.execute(SCHEMA)
            shop = Shop(pool)
            runner = (
                Runner(pool, shop)
                .register_job_type(SendReceipt)
                .configure_queue("emails", num_workers=2)
            )
            async with runner.start():  # leaving it lets running jobs finish
                yield {"shop": shop}

    routes = [
        Route("/", show_all),
        Route("/orders", order, methods=["POST"]),
        Route("/orders/{order_id:int}", show_order),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


async def order(request: Request) -> JSONResponse:
    """Place an order."""
    email, item, quantity = await _read_order(request)
    shop: Shop = request.state.shop
    async with shop.pool.connection() as conn, conn.transaction():
        order_id = await place_order(conn, email, item, quantity)
        await SendReceipt(order_id=order_id).enqueue(conn)
        if not await take_from_stock(conn, item, quantity):
            # rolls back the order and, with it, the job
            raise HTTPException(409, f"There are not that many left: {item}\n")
    # committed: a worker may have the job already
    location = f"/orders/{order_id}"
    return JSONResponse({"id": order_id}, status_code=201, headers={"Location": location})


async def show_order(request: Request) -> JSONResponse:
    """Show an order; with ?wait=10, as soon as its receipt is sent, or after 10 seconds."""
    shop: Shop = request.state.shop
    deadline = time.monotonic() + _read_wait(request)
    while True:
        receipt = shop.next_receipt  # before the look: one that is sent after it is not missed
        found = await shop.orders(request.path_params["order_id"])
        if not found:
            raise HTTPException(404, "There is no such order\n")
        left = deadline - time.monotonic()
        if found[0]["receipt"] is not None or left <= 0:
            return JSONResponse(found[0])
        with suppress(TimeoutError):
            async with asyncio.timeout(left):
                await receipt.wait()


async def show_all(request: Request) -> JSONResponse:
    """Show what is left in the shop, and all orders."""
    shop: Shop = request.state.shop
    return JSONResponse({"stock": await shop.stock(), "orders": await shop.orders()})


async def _read_order(request: Request) -> tuple[str, str, int]:
    try:
        given = await request.json()
    except ValueError:
        given = None
    match given:
        case {"email": str(email), "item": str(item), "quantity": int(quantity)}:
            if 1 <= quantity <= 1000:
                return email, item, quantity
    raise HTTPException(422, 'An order is {"email": text, "item": text, "quantity": number}\n')


def _read_wait(request: Request) -> float:
    try:
        return min(60.0, float(request.query_params.get("wait", "0")))
    except ValueError:
        raise HTTPException(422, "wait is a number of seconds\n") from None
