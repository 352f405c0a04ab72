# make demo: a fresh machine to a report.  make test: the whole suite.  Both set up what they need and nothing twice.
# PYTHON=/path/to/python3 chooses the interpreter, VENV=folder the environment, PIP_FLAGS=... is handed to pip
# (for example an index with builds of torch for your GPU).

.DEFAULT_GOAL := help
.PHONY: help demo test lint docs bench
.NOTPARALLEL:

VENV ?= .venv
PYTHON ?=
PIP_FLAGS ?=
BIN := $(VENV)/bin
# what is installed is remembered by the content of the two files that decide it
KEY := $(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)
HAS_RUN := $(VENV)/.interfuse-run-$(KEY)
HAS_DEV := $(VENV)/.interfuse-dev-$(KEY)
INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet $(PIP_FLAGS) -c constraints.txt

export PIP_NO_INPUT := 1

help:
	@echo "make demo    install what a run needs, run the quickstart, print its table and the place of its report"
	@echo "make test    install what the suite needs, lint, run the whole suite"
	@echo "make lint    ruff and mypy"
	@echo "make docs    build the documentation into site/"
	@echo "make bench   run the benchmarks; results go to benchmarks/results/"

demo: $(HAS_RUN)
	@HF_HUB_OFFLINE=1 $(BIN)/interfuse run recipes/quickstart.yaml

test: $(HAS_DEV) lint
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

lint: $(HAS_DEV)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(HAS_DEV)
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

bench: $(HAS_DEV)
	@failed=; for script in $$(grep -l __main__ benchmarks/*.py); do echo "$$script"; \
	  HF_HUB_OFFLINE=1 PYTHONPATH=. $(BIN)/python "$$script" || failed="$$failed $$script"; done; \
	[ -z "$$failed" ] || { echo "These did not end well:$$failed" >&2; exit 1; }

$(HAS_RUN): | $(BIN)/python
	@echo "installing what a run needs into $(VENV) (about 1.7 GB on disk, once)"
	@$(INSTALL) -e .
	@touch $@

$(HAS_DEV): | $(BIN)/python
	@echo "installing what the suite needs into $(VENV) (once)"
	@$(INSTALL) -e ".[dev]"
	@touch $@ $(HAS_RUN)

$(BIN)/python:
	@for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python3.14); do \
	  if "$$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$("$$python" --version)"; \
	    exec "$$python" -m venv $(VENV); \
	  fi; \
	done; \
	echo "No Python 3.11 or newer with the modules venv and ensurepip was found (on Debian and Ubuntu: apt install python3-venv)." >&2; \
	echo "Install one, or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1
