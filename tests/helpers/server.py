"""Find the PostgreSQL server that a test run uses, and make DSNs for it.

In this order: the one that WORKERS_TEST_DATABASE_URL names, a container where Docker answers, the embedded server.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict

from workers.embedded import SCHEME as EMBEDDED
from workers.embedded import embedded
from workers.errors import ConfigurationError

URL_VARIABLE = "WORKERS_TEST_DATABASE_URL"
CONTAINER = "container:"  # as in container:postgres:15, the image to run
RUNS_BEFORE = "WORKERS_TEST_RUNS_BEFORE"  # what `make ci` wants said at the end of a run
SERVER_ONLY = "WORKERS_TEST_SERVER_ONLY"  # set to leave out the tests that use no server
DEFAULT_IMAGE = "postgres:18"

# Nothing that a test writes has to survive a crash of the machine.
CONNECTIONS = {"max_connections": 200}
SETTINGS = {**CONNECTIONS, "fsync": False, "full_page_writes": False}


@dataclass(frozen=True, slots=True)
class TestServer:
    """A server to test on: its DSN, where it comes from, and its exact version."""

    __test__ = False

    dsn: str
    source: str
    version: str

    def __str__(self) -> str:
        return f"PostgreSQL {self.version} ({self.source})"


class NoServerError(Exception):
    """No server to test on; the message says what was tried."""


@contextlib.contextmanager
def find_server(*, durable: bool = False) -> Iterator[TestServer]:
    """Yield the server that the tests run on; a container or embedded server is stopped afterwards.

    `durable`: as in production. Raises NoServerError.
    """
    settings = CONNECTIONS if durable else SETTINGS
    url = os.environ.get(URL_VARIABLE, "")
    if not url:
        url = CONTAINER + DEFAULT_IMAGE if docker_answers() else EMBEDDED
    opened: contextlib.AbstractContextManager[tuple[str, str]]
    if url.startswith(CONTAINER):
        if not docker_answers():
            raise NoServerError(f"{URL_VARIABLE} is {url}, and no Docker engine answers")
        opened = _container(url.removeprefix(CONTAINER), settings)
    elif url.startswith(EMBEDDED):
        opened = _embedded(url.removeprefix(EMBEDDED), settings)
    else:
        opened = contextlib.nullcontext((url, URL_VARIABLE))
    with opened as (dsn, source):
        yield TestServer(dsn, source, _version(dsn, source))


def one_each() -> bool:
    """Whether each process of a test run can have a server of its own: not where one was named, or none can be started."""
    url = os.environ.get(URL_VARIABLE, "")
    return docker_answers() if url.startswith(CONTAINER) else url.startswith(EMBEDDED) or not url


def docker_answers() -> bool:
    """Whether a Docker engine can be reached: within a second, and without a word when not."""
    # docker-py leaves its socket open when nobody answers: collect it before warnings are errors again.
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        answers = _ping_docker()
        gc.collect()
    return answers


def _ping_docker() -> bool:
    try:
        from testcontainers.core.docker_client import DockerClient

        with contextlib.closing(DockerClient(timeout=1).client) as client:
            return bool(client.ping())
    except Exception:  # there are a dozen ways not to have Docker
        return False


def connection_url(dsn: str, **parameters: str) -> str:
    """Return `dsn`, in either of libpq's forms, as a URL with `parameters` added; `options` are joined."""
    given = {key: str(value) for key, value in conninfo_to_dict(dsn).items() if value is not None}
    if "options" in given and "options" in parameters:
        parameters["options"] = f"{given['options']} {parameters['options']}"
    given |= parameters
    user = quote(given.pop("user", ""), safe="")
    password = given.pop("password", None)
    login = user if password is None else f"{user}:{quote(password, safe='')}"
    database = quote(given.pop("dbname", ""), safe="")
    address = ""
    if _fits_address(given.get("host", "")):
        address = ":".join(filter(None, (given.pop("host"), given.pop("port", ""))))
    query = urlencode(given, quote_via=quote)
    return f"postgresql://{login and login + '@'}{address}/{database}{query and '?' + query}"


def _fits_address(host: str) -> bool:
    """Sockets, lists of hosts and IPv6 addresses stay a parameter of the query."""
    return bool(host) and not set(host) & set("/@,:")


def _version(dsn: str, source: str) -> str:
    try:
        with psycopg.connect(dsn, connect_timeout=10) as conn:
            full = conn.info.parameter_status("server_version") or ""
            return full.partition(" ")[0]  # without the name of the distribution that built it
    except psycopg.Error as error:
        raise NoServerError(f"the test server ({source}) can't be reached: {error}") from error


@contextlib.contextmanager
def _container(image: str, settings: dict[str, int]) -> Iterator[tuple[str, str]]:
    from testcontainers.community.postgres import PostgresContainer

    logging.getLogger("testcontainers").setLevel(logging.WARNING)
    flags = " ".join(
        f"-c {name}={'off' if value is False else value}" for name, value in settings.items()
    )
    with PostgresContainer(image, driver=None).with_command(f"postgres {flags}") as container:
        yield container.get_connection_url(), f"container of {image}"


@contextlib.contextmanager
def _embedded(path: str, settings: dict[str, int]) -> Iterator[tuple[str, str]]:
    with contextlib.ExitStack() as stack:
        try:
            server = stack.enter_context(embedded(path or None, settings=settings))
        except ConfigurationError as error:
            raise NoServerError(
                f"no PostgreSQL to test on: {URL_VARIABLE} is not set, Docker does not answer, and {error}"
            ) from error
        yield server.dsn, "embedded"
