"""The rows of the table, one module for each kind of fault; importing this package fills `harness.ROWS`, in order."""

from __future__ import annotations

import re
from importlib import import_module
from pkgutil import iter_modules

from tests.faults.harness import ROWS

for _module in sorted(iter_modules(__path__), key=lambda found: found.name):
    import_module(f"{__name__}.{_module.name}")


def _order(name: str) -> tuple[int, str]:
    number = re.match(r"\d+", name)
    return int(number[0]) if number else 0, name


for _name in sorted(ROWS, key=_order):
    ROWS[_name] = ROWS.pop(_name)
