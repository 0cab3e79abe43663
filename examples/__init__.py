"""Programs that show how `workers` is used. Each is run with `python -m` from the repository's root."""
