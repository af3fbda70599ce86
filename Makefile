# `make` sets up and runs the default study; `make STUDY=configs/x.yaml` another one.
STUDY ?= config.yaml
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready

.PHONY: study setup test lint plan clean-scratch

study: $(READY)
	@$(VENV)/bin/capgap run --study $(STUDY)

plan: $(READY)  ## what would be done
	@$(VENV)/bin/capgap run --study $(STUDY) --dry-run

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or set PYTHON"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old; 3.11 or newer is needed, set PYTHON"; exit 1; }
	@test -x $(VENV)/bin/python || $(PYTHON) -m venv $(VENV)
	@echo "installing pinned packages into $(VENV) (once, a few minutes)"
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $(READY)

test: $(READY)
	@HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/snakefmt --check Snakefile rules
	@$(VENV)/bin/snakemake --lint
