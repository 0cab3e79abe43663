"""Serve the shop. The database is an embedded one, unless DATABASE_URL names another:

    python -m examples.webapp
    curl -d '{"email": "ash@example.com", "item": "potion", "quantity": 2}' http://127.0.0.1:8000/orders
    curl 'http://127.0.0.1:8000/orders/1?wait=10'

The receipt that the second answer shows was written by the job. An order that fails leaves none:

    curl -d '{"email": "ash@example.com", "item": "master ball", "quantity": 2}' http://127.0.0.1:8000/orders
    curl http://127.0.0.1:8000/
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys

import uvicorn

from workers.embedded import resolve_dsn

from .app import create_app


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.webapp",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (8000)")
    port = parser.parse_args().port
    app = create_app(resolve_dsn(os.environ.get("DATABASE_URL") or "embedded:"))
    logging.basicConfig(level=logging.INFO, format="%(levelname)s:  %(message)s")
    # uvicorn raises SIGTERM again when it has shut down; an exit in order stops the embedded server
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    uvicorn.run(app, host="127.0.0.1", port=port)


if __name__ == "__main__":
    main()
