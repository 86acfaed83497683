# `make demo` and `make test` are all a new machine needs: Python 3.11 or newer, git and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Without compiled files every process that imports torch and lm-eval takes three times as long, and tests start many.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-rest test-nightly test-all test-vllm test-vllm-ray check lint format docs bench clean

help:
	@echo "make demo    set up, make the demo's models, search, print the result"
	@echo "make test    set up and run the tests of every package, the installed wheel and a whole search included"
	@echo "make test-all  these and the second tier: kills, clusters, other tools beside ours, browsers"
	@echo "make test-nightly  what takes long: every published protocol on its stand-in, measured memory, the script for a GPU"
	@echo "make test-vllm  vLLM's engine on the processor, in an environment of its own; test-vllm-ray: one over two processes on Ray"
	@echo "make check   ruff, mypy, import-linter, circles of imports and all tests"
	@echo "make docs    the documentation, into docs/_build/html"
	@echo "make bench   the benchmarks"
	@echo "make clean   remove the environment, the demo's models and its runs"

# pip installs torch by itself: it honours the user's own pip settings, where a CPU build may be configured.
# uv installs the rest several times faster than pip.
$(BIN)/uv: constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	@touch $@

$(VENV)/.torch: $(BIN)/uv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-compile $(TORCH)
	@touch $@

$(VENV)/.user: $(VENV)/.torch pyproject.toml
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@ $(VENV)/.user

demo: $(VENV)/.user
	$(BIN)/evomerge demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile

test: $(VENV)/.dev
	$(PYTEST) -m "not slow and not nightly"

test-rest: $(VENV)/.dev
	$(PYTEST) -m "slow and not nightly"

# What takes long and seldom breaks alone, for a nightly run.
test-nightly: $(VENV)/.dev
	$(PYTEST) -m nightly

test-all: $(VENV)/.dev
	$(PYTEST)

# vLLM pins versions of its own: an environment of its own, made once for this version of the script.
VLLM_ENVIRONMENT ?= .vllm

$(VLLM_ENVIRONMENT)/.made: scripts/vllm_environment.sh pyproject.toml
	PYTHON=$(PYTHON) scripts/vllm_environment.sh $(VLLM_ENVIRONMENT)
	@touch $@

test-vllm: $(VLLM_ENVIRONMENT)/.made
	OMP_NUM_THREADS=1 $(VLLM_ENVIRONMENT)/bin/python -m pytest -m "vllm and not slow" tests/evaluation tests/fitness

test-vllm-ray: $(VLLM_ENVIRONMENT)/.made
	OMP_NUM_THREADS=1 $(VLLM_ENVIRONMENT)/bin/python -m pytest -m "vllm and slow" tests/evaluation

check: lint test-all

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_layout.py

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m sphinx -W --keep-going -q -d docs/_build/doctrees docs docs/_build/html

bench: $(VENV)/.user
	$(BIN)/python scripts/benchmark.py overhead

clean:
	rm -rf $(VENV) $(VLLM_ENVIRONMENT) demo_pool runs docs/_build
