"""dbos: workflows on a queue of the database."""

import asyncio
import signal

from dbos import DBOS, DBOSClient
from shared import CONCURRENCY, DSN, ran
from shared import fail as raise_error

DISTRIBUTION = "dbos"
VERSION = "v1"


@DBOS.workflow(name="good")
async def good(number, text=""):
    ran(number, text)


@DBOS.workflow(name="fail")
async def fail(how):
    raise_error(how)


@DBOS.workflow(name="again")
async def again(how):
    raise_error(how)


def launch():
    DBOS(
        config={
            "name": "beside",
            "system_database_url": DSN,
            "application_version": VERSION,
            "run_admin_server": False,
        }
    )
    DBOS.launch()
    DBOS.register_queue("default", worker_concurrency=CONCURRENCY)


async def setup():
    def launch_once():
        launch()
        DBOS.destroy()

    await asyncio.to_thread(launch_once)


async def enqueue(numbers):
    client = DBOSClient(system_database_url=DSN)
    options = {"queue_name": "default", "workflow_name": "good", "app_version": VERSION}
    for number in numbers:
        await client.enqueue_async(options, number=number)
    client.destroy()


def worker():
    launch()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    DBOS.destroy(workflow_completion_timeout_sec=0)
