# Every command here does its own set-up, and takes ARGS="..." for the tool that it runs.

PYTHONS ?= python3.13 python3.12 python3.11 python3.14 python3 python
RUN = .venv/bin/python -m
# The tests of a file stay together: they share what took long to make.
PARALLEL = -n auto --dist loadfile
STAMP = .venv/.installed

.DEFAULT_GOAL := help
.PHONY: help setup test test-verbose lint fmt typecheck ci minimums bench faults stress fuzz clean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-14s%s\n", $$1, $$2}' Makefile

setup: $(STAMP) ## make .venv and install everything into it (by itself again when pyproject.toml changes)

# On standard error, because standard output belongs to the command that set-up is done for.
$(STAMP): pyproject.toml
	@if ! .venv/bin/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		for python in $(PYTHONS) ''; do \
			"$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
		done; \
		test -n "$$python" || { echo 'This needs Python 3.11 or newer, with venv.' >&2; exit 1; }; \
		"$$python" -m venv --clear .venv >&2; \
	fi
	@echo 'Installing into .venv ...' >&2
	@$(RUN) pip install -qq --disable-pip-version-check --editable '.[dev]' >&2
	@touch $@

test: $(STAMP) ## run the tests, on two processors where there are
	@$(RUN) pytest $(PARALLEL) $(ARGS)

test-verbose: $(STAMP) ## run the tests one by one, naming each one and the slowest
	@$(RUN) pytest -vv --durations=20 $(ARGS)

lint: $(STAMP) ## check style and formatting
	@$(RUN) ruff check $(ARGS)
	@$(RUN) ruff format --check $(ARGS)

fmt: $(STAMP) ## repair style and formatting
	@$(RUN) ruff check --fix $(ARGS)
	@$(RUN) ruff format $(ARGS)

typecheck: $(STAMP) ## check the types
	@$(RUN) mypy $(ARGS)

ci: $(STAMP) ## lint, typecheck, and the tests on two major versions of PostgreSQL where they can be reached
	@$(MAKE) --no-print-directory lint ARGS=
	@$(MAKE) --no-print-directory typecheck ARGS=
	@$(RUN) tests.helpers.matrix $(PARALLEL) $(ARGS)

minimums: $(STAMP) ## run the tests with the oldest versions of other packages that pyproject.toml allows, in .venv-minimums
	@$(RUN) tests.helpers.minimums $(PARALLEL) $(ARGS)

bench: $(STAMP) ## run the benchmarks: a table, and results and pictures in benchmarks/out
	@$(RUN) benchmarks $(ARGS)

faults: $(STAMP) ## inject every fault of the table, and write what came of it to docs/reliability.md
	@$(RUN) tests.faults $(ARGS)

stress: $(STAMP) ## run the stress test, a monster-collecting game
	@$(RUN) examples.stress_test $(ARGS)

fuzz: $(STAMP) ## look for inputs that nobody thought of: 5,000 examples of each test, then by coverage where atheris installs
	@$(RUN) pytest -k fuzz --hypothesis-profile=fuzz -o faulthandler_timeout=0 $(ARGS)
	@$(RUN) pip install -qqq --disable-pip-version-check --only-binary atheris atheris 2>/dev/null || true
	@$(RUN) tests.fuzz

clean: ## remove .venv and everything else that these commands made
	@rm -rf .venv .venv-minimums .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist benchmarks/out
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
