"""What every library's jobs do. Only the standard library: it is imported in each library's environment."""

import os

DSN = os.environ.get("BESIDE_DSN", "")
CONCURRENCY = 10


class UnprintableError(Exception):
    """Its text can't be had."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def ran(number, text=""):
    """A good job: notes that it ran."""
    with open(os.environ["BESIDE_RAN"], "a") as file:
        file.write(f"{number}\n")


def fail(how):
    """A job that fails, in one of several ways."""
    if how == "nul":
        raise ValueError("before\0after")
    if how == "surrogate":
        raise ValueError("before\ud800after")
    if how == "large":
        raise ValueError("x" * 20_000_000)
    if how == "str":
        raise UnprintableError
    raise ValueError("no")
