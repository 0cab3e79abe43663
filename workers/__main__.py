"""`python -m workers` is the command `workers`."""

from .cli import main

if __name__ == "__main__":
    main()
