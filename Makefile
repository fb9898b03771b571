# `make demo` and `make test` need Linux and Python 3.11 or newer, and set up everything else in .venv.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin

.PHONY: demo test lint docs coverage audit test-lowest
demo: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" bash examples/demo.sh

test: .venv/installed-dev
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/installed-dev
	$(BIN)/python docs/hooks/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Coverage is of the quick tests, those that start no launcher, cluster or compiler.
QUICK := tests/test_*.py tests/check tests/data tests/data_tools tests/evaluate tests/model tests/estimate tests/runtime \
    tests/predict tests/report tests/watch
coverage: .venv/installed-dev
	$(BIN)/python -m pytest -n 3 --dist loadfile --cov --cov-report term:skip-covered --cov-report html $(QUICK)

audit: .venv/installed-dev
	$(BIN)/python .ci/audit

test-lowest:
	PYTHON=$(PYTHON) .ci/lowest

.venv/installed: requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --progress-bar on -r requirements.txt -e .
	touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --disable-pip-version-check --quiet -e ".[dev]"
	touch $@
