# `make` sets up and runs the default study; `make STUDY=configs/x.yaml` another one.
STUDY ?= config.yaml
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check
TORCH := $(shell sed -n 's/^torch==//p' requirements.lock)

.PHONY: study setup test test-slow test-remotes test-slurm remotes lm-eval bench lint plan

study: $(READY)
	@$(VENV)/bin/capgap run --study $(STUDY)

plan: $(READY)  ## what would be done
	@$(VENV)/bin/capgap run --study $(STUDY) --dry-run

setup: $(READY)

$(READY): requirements.lock pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or newer, or set PYTHON"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: $$($(PYTHON) --version) is too old; 3.11 or newer is needed, set PYTHON"; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv --clear $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment; install its venv package (Debian: apt install python3-venv)"; exit 1; }
	@echo "installing pinned packages into $(VENV) (once, a few minutes)"
	@# torch with what its build needs (CUDA libraries, where it is a CUDA build), the rest as pinned
	@$(PIP) --constraint requirements.lock torch==$(TORCH)
	@$(PIP) --no-deps -r requirements.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $(READY)

test: $(READY)
	@HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest

test-slow: $(READY)  ## a study killed at random moments, other revisions, merges, part of a clone
	@HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -m slow

remotes: $(READY)  ## what DVC needs to share through S3 and SSH
	@$(PIP) --no-deps --requirement requirements-remotes.txt

lm-eval: $(READY)  ## lm-evaluation-harness, for studies that say harness
	@$(PIP) --no-deps --requirement requirements-lm-eval.txt

bench: $(READY)  ## peers that benchmarks compare with
	@$(PIP) --no-build-isolation --constraint requirements.lock --editable '.[bench]'

test-remotes: remotes  ## sharing through real servers on this machine
	@$(PIP) --no-deps --requirement tests/workflow/requirements.txt
	@command -v sshd >/dev/null || test -x /usr/sbin/sshd || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends openssh-server; }
	@HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -m remotes tests/workflow/test_remotes.py

test-slurm: $(READY)  ## a small study on a real Slurm of two nodes on this machine; as root
	@$(PIP) --no-deps --requirement tests/slurm/requirements.txt throttler==1.2.3
	@test -x /usr/sbin/slurmctld || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; }
	@HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest -m "slurm or not (slow or remotes)" \
		tests/slurm tests/workflow/test_profile_runs.py

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/snakefmt --check Snakefile rules
	@$(VENV)/bin/snakemake --lint
