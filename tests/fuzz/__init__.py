"""Fuzzing by coverage: `make fuzz`, or `python -m tests.fuzz` where atheris is installed."""
