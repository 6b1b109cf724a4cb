# Every target has a line of help: `make help`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
export PYTHONUNBUFFERED := 1
.DEFAULT_GOAL := help

.PHONY: help
help: ## List every target
	@grep -hE '^[a-zA-Z0-9_-]+:.*## ' $(MAKEFILE_LIST) | sort -u | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

# ---- set-up -------------------------------------------------------------------------------------
$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed ## Make .venv and install requirements.txt

# ---- test ---------------------------------------------------------------------------------------
.PHONY: test lint
lint: setup ## Lint and check the format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test: lint ## Set up, lint, run all tests
	$(PY) -m pytest

# ---- train --------------------------------------------------------------------------------------

# ---- models and benchmarks ----------------------------------------------------------------------

# ---- sweeps -------------------------------------------------------------------------------------

# ---- engines ------------------------------------------------------------------------------------

# ---- evaluation ---------------------------------------------------------------------------------

# ---- reproduction -------------------------------------------------------------------------------
.PHONY: theorems
theorems: setup ## Check Theorems 1 to 3 against autograd (RUN=folder for a run's values) and draw f
	$(PY) scripts/theorems.py $(if $(RUN),--run $(RUN))

