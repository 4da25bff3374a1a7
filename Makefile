.DEFAULT_GOAL := help
SHELL := /bin/bash

# The newest Python that is here and that the stack runs on; PYTHON=... decides otherwise.
PYTHON ?= $(firstword $(foreach v,3.12 3.13 3.11,$(shell command -v python$(v) 2>/dev/null)) python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help install ablation test test-all check format bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(VENV)/installed  ## .venv with everything in it

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"Python 3.11, 3.12 or 3.13 is needed, {sys.executable} is {v[0]}.{v[1]}: make PYTHON=python3.12 install")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

ablation: install  ## the main job: x0, epsilon, score, v and levels on real digits, with a report
	$(BIN)/triptych-train -m ablation=objectives

test: install  ## the tests, without the slow ones
	$(BIN)/python -m pytest -m 'not slow and not gpu'

test-all: install  ## all of them
	$(BIN)/python -m pytest

check: install  ## ruff, ruff-format, mypy
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

format: install  ## put the code into shape
	$(BIN)/ruff check --fix src tests benchmarks
	$(BIN)/ruff format src tests benchmarks

bench: install  ## overhead of a training step against a bare PyTorch loop
	$(BIN)/python benchmarks/training_step.py

clean:  ## remove what was installed and cached, keep the runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
