# Every target makes .venv from the pinned lock when it is missing or stale, then calls a plain
# tool; the same tools work by hand once .venv/bin is on PATH.

SHELL := bash
export PATH := $(CURDIR)/.venv/bin:$(PATH)

SUPPORTED := import ensurepip, sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c '$(SUPPORTED)' 2>/dev/null && echo $$p && break; done)

PRESET = default
SET =
CORES = all
WORKERS = 2
SECONDS = 480
RUNS =
LANGUAGE =
REFERENCE =

.DEFAULT_GOAL := help
.PHONY: help replicate smoke advance report bench bench-gpu bench-memory test test-faults audit \
	lint format lock clean distclean FORCE

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z.-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# --- set-up -----------------------------------------------------------------------------------

# Written last, with the folder it was made in: a half-made or moved .venv is made anew, because
# an interrupted installer leaves packages that look whole and scripts hold absolute paths.
STAMP := .venv/.installed
MADE_IN := $(shell cat $(STAMP) 2>/dev/null)
PIP := .venv/bin/python -m pip install --disable-pip-version-check
# With bytecode, as pip does it: hundreds of jobs import the same packages, and where Python may
# not write beside them (PYTHONDONTWRITEBYTECODE, a read-only disk) each would compile them anew.
UV := .venv/bin/uv pip install --system-certs --compile-bytecode --python .venv/bin/python
BOOTSTRAP := --require-hashes -r envs/bootstrap.lock
LOCKED := --require-hashes -r envs/requirements.lock

$(STAMP): envs/bootstrap.lock envs/requirements.lock pyproject.toml $(if $(subst x$(CURDIR),,x$(MADE_IN)),FORCE)
	@$(or $(PYTHON),false) -c '$(SUPPORTED)' 2>/dev/null || { \
		echo "found no Python 3.11 or 3.12 with ensurepip; expected one on PATH: install it" \
			"(Debian: python3.11-venv) or name it, make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@if [ "$$(cat $@ 2>/dev/null)" = "$(CURDIR)" ]; then echo "updating .venv from envs/requirements.lock"; \
	else echo "making .venv from envs/requirements.lock (about 6 GB, once)"; \
		$(PYTHON) -m venv --clear .venv; fi
	@rm -f $@
	@{ $(PIP) --quiet $(BOOTSTRAP) && $(UV) $$([ -t 2 ] || echo --quiet) $(LOCKED); } || { \
		echo "uv could not install the lock; trying pip, which takes some minutes" >&2; \
		$(PIP) --progress-bar off $(LOCKED); }
	@$(PIP) --quiet --no-deps --no-build-isolation --editable .
	@.venv/bin/python -m compileall -q src
	@echo "$(CURDIR)" > $@

.venv: $(STAMP) ## make or update .venv

lock: $(STAMP) ## resolve envs/*.in again (UPGRADE=1: to the newest versions)
	for name in bootstrap requirements; do \
		uv pip compile envs/$$name.in --universal --python-version 3.11 --generate-hashes \
			--no-emit-index-url --no-header --quiet $(if $(UPGRADE),--upgrade) \
			-o envs/$$name.lock || exit; done
	python envs/conda.py envs/requirements.lock envs/cpu.yaml

# --- the workflow -----------------------------------------------------------------------------

smoke: PRESET = smoke
replicate: ## run a sweep (PRESET=default, SET="data.path=… key=value", CORES=all)
smoke: ## run the whole workflow on a tiny preset
replicate smoke: $(STAMP)
	snakemake --cores $(CORES) --config preset=$(PRESET) $(if $(SET),set="$(SET)")

advance: PRESET = cifar10
advance: $(STAMP) ## do part of a sweep, for SECONDS=480 (PRESET=cifar10, RUNS="…", LANGUAGE=1)
	diffusionblocks advance --preset $(PRESET) --seconds $(SECONDS) $(if $(RUNS),--runs $(RUNS)) \
		$(if $(LANGUAGE),--language) $(if $(SET),--set $(SET))

report: $(STAMP) ## draw notebooks and verdicts from REFERENCE=results/reference/…/…
	@[ -n "$(REFERENCE)" ] || { echo "make report: found no REFERENCE; expected a folder with" \
		"provenance.json: name one, REFERENCE=results/reference/DEVICE/PRESET" >&2; exit 2; }
	diffusionblocks reference render --reference $(REFERENCE) \
		--output $(patsubst results/reference/%,results/rendered/%,$(REFERENCE))

bench: $(STAMP) ## measure speed against its targets; writes results/bench/*.csv
	python benchmarks/bench.py
	python benchmarks/bench_language.py

bench-gpu: $(STAMP) ## measure speed on a GPU; writes results/bench/gpu.csv
	python benchmarks/bench_gpu.py

bench-memory: $(STAMP) ## check memory against its targets; writes results/bench/memory.csv
	python benchmarks/bench_memory.py

# --- quality ----------------------------------------------------------------------------------

test: $(STAMP) ## run every test; at least 90 % of src must be covered
	OMP_NUM_THREADS=1 pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder --cov --cov-report=term-missing:skip-covered

# Not among `make test`: pytest finds no file of tests/faults unless it is named.
test-faults: $(STAMP) ## inject faults (kills, full disks, hostile input); writes results/faults.csv
	python tests/faults/run.py

audit: $(STAMP) ## licences and known vulnerabilities of the lock; writes results/licences.csv
	python envs/audit.py envs/requirements.lock envs/bootstrap.lock --licences results/licences.csv

lint: $(STAMP) ## check code, workflow and notebooks without changing them
	ruff check .
	ruff format --check .
	snakefmt --check Snakefile workflow/rules
	nbstripout --verify notebooks/*.ipynb

format: $(STAMP) ## rewrite code, workflow and notebooks in the house format
	ruff check --fix .
	ruff format .
	snakefmt Snakefile workflow/rules
	nbstripout notebooks/*.ipynb

# --- tidying ----------------------------------------------------------------------------------

clean: ## remove results (not results/reference) and caches
	[ ! -d results ] || find results -mindepth 1 -maxdepth 1 \
		! -name reference ! -name README.md -exec rm -rf {} +
	rm -rf .snakemake .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov build
	find . -name .venv -prune -o -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove .venv as well
	rm -rf .venv src/*.egg-info
