"""Fuzzing by coverage: `python -m tests.fuzz`, after `pip install atheris`."""
