# make demo: everything from nothing to a report.   make test: set up and run the tests.   make help: the rest.
# PYTHON chooses the interpreter (3.11 to 3.13), VENV the environment that is made.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
export PATH := $(CURDIR)/$(BIN):$(PATH)

.PHONY: help setup demo test test-full check format results wheel clean

help:
	@echo "make demo       draw images, pack, train on 2 ranks, evaluate, report (sets up $(VENV) first)"
	@echo "make test       the tests (sets up $(VENV) first); BLOODCELL_DATA=DIR adds those on real images"
	@echo "                (those on a real Slurm run where slurmctld, slurmd and slurm-client are installed)"
	@echo "make test-full  all tests, the slow ones too"
	@echo "make check      lint, format and type checks"
	@echo "make format     format the code"
	@echo "make results    docs/results/README.md and the README's tables, from the files in docs/results"
	@echo "make wheel      build the wheel into dist/"
	@echo "make clean      remove $(VENV) and what was built"

setup: $(STAMP)

# One resolve installs everything (about 7 GB); it is repeated only when what it depends on changes.
$(STAMP): pyproject.toml constraints.txt
	@PYTHON="$(PYTHON)" VENV="$(VENV)" sh tests/prerequisites.sh
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev,tensorboard,sweep,export,app,dashboard,notebooks]"
	@# Before Python 3.12.8 torchrun refuses `--run` behind the program's name (jobs/torchrun.py says why).
	@printf '#!/bin/sh\nexec "%s/python" -m jobs.torchrun "$$@"\n' '$(abspath $(BIN))' > $(BIN)/torchrun
	@touch $(STAMP)

demo: setup
	$(BIN)/bloodcell demo --force

# A process for each core, up to 8; the tests of one file stay together, for they share what they have packed and trained.
# tests/conftest.py puts the longest first.
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST) -m "not slow"

test-full: setup
	$(PYTEST)

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

results: setup
	$(BIN)/python -m jobs.bench.publish

wheel: setup
	$(BIN)/python -m build --wheel --installer pip --outdir dist .

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache
