"""`python run.py MODULE COMMAND [ARGUMENT ...]`: one library's script, in that library's environment.

The module is imported by its name, because some libraries find their jobs by it. Commands: `version`, `setup` makes the
tables, `enqueue FIRST LAST` good jobs of those numbers, the last one not included; `worker` works until it is stopped.
"""

import asyncio
import importlib
import logging
import sys
from importlib.metadata import version


def main() -> None:
    module = importlib.import_module(sys.argv[1])
    command = sys.argv[2]
    logging.basicConfig(level=logging.WARNING)
    if command == "version":
        print(version(module.DISTRIBUTION))
    elif command == "setup":
        asyncio.run(module.setup())
    elif command == "enqueue":
        asyncio.run(module.enqueue(range(int(sys.argv[3]), int(sys.argv[4]))))
    else:
        module.worker()


if __name__ == "__main__":
    main()
