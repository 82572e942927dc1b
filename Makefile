# `make demo` and `make test` need nothing but python3 (3.11 or newer) and make: each builds .venv once and reuses it.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TABLE ?= scenes
ARGS ?=
EXTRAS ?= dev,docs
WORKERS ?= 2
MINUTES ?= 10
ND := $(BIN)/nd
# Tests start Python processes: where no bytecode is kept, each of them would compile nd again.
unexport PYTHONDONTWRITEBYTECODE

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow lint type tests faults bench wheel lock format docs doctor reproduce-table clean

help: ## show these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "nd needs Python 3.11 or newer; this is " + sys.version.split()[0] + ". Give another with PYTHON=python3.11")'
	@echo "building $(VENV) (once; several GB, a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

install: $(READY) ## build the environment in .venv

demo: $(READY) ## reconstruct the embedded world end to end: table, report and picture grid in results/
	$(ND) run experiment=scenes
	$(ND) table experiment=scenes
	$(ND) report experiment=scenes

test: $(READY) ## lint, types and tests, side by side
	$(MAKE) --no-print-directory --jobs 3 lint type tests

lint: $(READY) ## style and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell nd conf experiments scripts docs notebooks README.md CHANGELOG.md CONTRIBUTING.md Makefile

type: $(READY) ## static types
	MYPY_NUM_WORKERS=$(WORKERS) $(BIN)/mypy nd

# Whole files go to whichever worker is free, in the order of tests/conftest.py; what a file's tests share is made once.
PYTEST = $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder

tests: $(READY) ## the tests alone, but for the slow ones, WORKERS at a time (2)
	$(PYTEST) -m "not nsd and not slow"

test-slow: $(READY) ## the slow tests: whole chains, several processes, every table in small
	$(PYTEST) -m "not nsd and slow"

FAULTS = PYTHONPATH=tests $(BIN)/python tests/faults

faults: $(READY) ## hours, and no part of test: kill, disturb, spoil and mutate; fuzz each reader MINUTES (10) long
	$(FAULTS)/corrupt.py readers --number 2000
	$(FAULTS)/corrupt.py verbs --number 500
	$(FAULTS)/disturb.py all --number 260
	$(FAULTS)/disturb.py kill --number 200
	$(FAULTS)/mutate.py
	$(FAULTS)/fuzz.py --minutes $(MINUTES)
	! $(BIN)/python -c "import atheris" 2> /dev/null || $(FAULTS)/fuzz.py --minutes $(MINUTES) --engine atheris

bench: $(READY) ## run the benchmarks: results/bench.csv (ARGS="--only ridge", ARGS=--quick, ARGS=--cuda)
	$(BIN)/python experiments/benchmarks $(ARGS)

wheel: $(READY) ## build wheel and source archive into dist/
	$(BIN)/python -m hatchling build -d dist

lock: $(READY) ## renew constraints.txt from what the bounds of pyproject.toml allow today
	@mkdir -p build
	$(BIN)/python -m pip install --quiet --dry-run --ignore-installed --disable-pip-version-check --report build/lock.json -e ".[$(EXTRAS)]"
	$(BIN)/python scripts/lock.py build/lock.json

format: $(READY) ## rewrite files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(READY) ## build the documentation site into site/, offline and strictly
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "wrote site/index.html"

doctor: $(READY) ## what is present, what is missing, how large
	$(ND) doctor

reproduce-table: $(READY) ## rebuild experiments/$(TABLE).yaml and compare with its expected values (TABLE=scenes ARGS=...)
	$(ND) run table=$(TABLE) $(ARGS)
	$(ND) table table=$(TABLE) check=true $(ARGS)

clean: ## remove what can be rebuilt (.venv, site, caches); data, runs and results stay
	rm -rf $(VENV) site .pytest_cache .mypy_cache .ruff_cache build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
