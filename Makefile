# Everything here needs Python 3.11 or newer and nothing else: the first target that runs makes .venv.
#
#   make demo        distill the embedded digits and write runs/demo
#   make test        the default tests
#   make test-slow   the tests that take longer
#   make lint        ruff and mypy
#   make docs        build the pages under docs/ into site/
#   make clean       remove .venv and caches (runs/ stays)

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One test process a core.
JOBS ?= auto

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lint docs clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(VENV)/.installed-report
	@$(BIN)/trajmatch demo --out runs/demo

test: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal

test-slow: $(VENV)/.installed-dev
	@$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m slow

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(VENV)/.installed-docs
	@$(BIN)/zensical build --clean --strict

clean:
	rm -rf $(VENV) site .cache build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# -- the virtual environment ---------------------------------------------------------------------
# A stamp says which extras were installed and from which versions of these two files.

$(VENV)/.installed-report: pyproject.toml constraints.txt
	@$(call install,report)
	@touch $@

# dev holds report, so `make demo` after `make test` has nothing left to install.
$(VENV)/.installed-dev: pyproject.toml constraints.txt
	@$(call install,dev)
	@touch $(VENV)/.installed-report $@

$(VENV)/.installed-docs: pyproject.toml constraints.txt
	@$(call install,docs)
	@touch $@

define install
set -e; \
$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "trajmatch needs Python 3.11 or newer, and '$(PYTHON)' says: $$($(PYTHON) --version 2>&1 | head -n 1);" \
       "name another one: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }; \
$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV); \
echo "Installing into $(VENV) (about two minutes the first time) ..."; \
$(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[$(1)]'
endef
