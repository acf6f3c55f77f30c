# make demo      set-up and one federation on this machine
# make demo-deployment   the same as real processes: certificates, a server, three nodes, on loopback
# make test      set-up and the tests (under 12 minutes on two cores)
# make test-all  the slow proofs too
# make lint      ruff and mypy
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo demo-deployment test test-all lint clean
.DELETE_ON_ERROR:

demo: $(VENV)/.run
	$(BIN)/gradtf simulate

demo-deployment: $(VENV)/.run
	BIN=$(BIN) experiments/demos/demo_deployment.sh

test: $(VENV)/.dev lint
	$(BIN)/python -m pytest -m "not slow"

test-all: $(VENV)/.dev lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "gradtf-fl needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	touch $@

# torch first: what comes after finds it installed and draws no other build
$(VENV)/.run: $(VENV)/.python pyproject.toml constraints.txt
	$(PIP) torch==2.13.0
	$(PIP) -e .
	touch $@

$(VENV)/.dev: $(VENV)/.run
	$(PIP) -e .[dev,ray]
	$(BIN)/python -m pip check
	touch $@

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
