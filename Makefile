# Everything a user or contributor runs. `make demo` and `make test` need nothing but Python 3.11-3.13 and a network.
#   make demo PYTHON=python3.12         another interpreter
#   make env PIP_FLAGS="--index-url …"  options of pip install, for example an index of CPU-only torch wheels
#   make test PYTEST_ARGS="-k ranking"  other options of pytest

PYTHON ?= python3
VENV ?= .venv
PIP_FLAGS ?=
PYTEST_ARGS ?= -m "not gpu and not slow"
DEMO_ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PACKAGES := stage1_multilabel stage2_segmentation label_cache pipelines kappaseg_core
SOURCES := $(PACKAGES) tests $(wildcard benchmarks)

.DEFAULT_GOAL := help
.PHONY: help env demo test test-all browser check lint types imports format clean

help:
	@echo "make demo    install and run the whole pipeline on synthetic scenes; ends with an HTML report"
	@echo "make test    install and run the test suite, but for what trains, kills or loads for long"
	@echo "make test-all  the whole suite (a quarter of an hour on two cores)"
	@echo "make check   formatting, lint, types, import rules"
	@echo "make format  rewrite the files the way make check wants them"
	@echo "make browser installs Chromium where apt-get can, for the tests of the page; without it they are skipped"
	@echo "make clean   remove the environment and all caches (not runs/)"

env: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "kappaseg needs Python 3.11, 3.12 or 3.13; $(PYTHON) is $$($(PYTHON) --version 2>&1); run: make PYTHON=python3.12 …"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) -e '.[dev]'
	touch $@

demo: env
	$(BIN)/kappaseg demo $(DEMO_ARGS)

test: env
	$(BIN)/python -m pytest $(PYTEST_ARGS)

test-all: env
	$(BIN)/python -m pytest -m "not gpu"

browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get update -qq && \
	  apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	  echo "no Chromium, and it cannot be installed here: the tests of the page are skipped"

check: lint types imports

lint: env
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)

types: env
	$(BIN)/mypy

imports: env
	$(BIN)/lint-imports

format: env
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
