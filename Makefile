.DEFAULT_GOAL := help
SHELL := /bin/bash

# The first Python that the stack runs on and that can make an environment; PYTHON=... decides otherwise.
FIT := import sys, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
ifndef PYTHON
PYTHON := $(shell for p in python3 python3.12 python3.13 python3.11; do $$p -c '$(FIT)' 2>/dev/null && echo $$p && break; done)
endif
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile
# pip compiles on one core
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/tests?/' $(VENV)/lib || true
# one version of each package, for this Python; the ranges are in pyproject.toml
PINS := requirements/$(shell $(or $(PYTHON),false) -c 'import sys; print("py%d%d.txt" % sys.version_info[:2])')
# TORCH=URL: an index to take torch from, as PyTorch's own of builds without CUDA, which are several GB smaller
TORCH :=

.PHONY: help install develop signatures upgrade ablation papers imagen dalle2 test test-all check format bench clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(VENV)/installed  ## .venv with what runs and reports need
develop: $(VENV)/developed  ## and with what tests, checks, searches, SLURM, Ray and the other loggers need

$(VENV)/installed: pyproject.toml $(wildcard requirements/*.txt)
	@$(or $(PYTHON),false) -c '$(FIT)' || { echo "error: Python 3.11, 3.12 or 3.13 with venv is needed: make PYTHON=/path/to/python3.12 install" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH),$(PIP) --no-deps --index-url $(TORCH) -c $(PINS) torch torchvision)
	$(PIP) -c $(PINS) -e .
	@$(COMPILE)
	@touch $@

$(VENV)/developed: $(VENV)/installed
	$(PIP) -c $(PINS) -e '.[dev]'
	@$(COMPILE)
	@touch $@

TABLE := src/triptych/config/signatures.json
signatures: install  ## the table of the arguments of all classes, after one was added
	$(BIN)/python docs/signatures.py > $(TABLE).new && mv $(TABLE).new $(TABLE)

upgrade:  ## the newest versions that pyproject.toml allows, pinned for this Python; then make test-all
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python requirements/pin.py

ablation: install  ## the main job: x0, epsilon, score, v and levels on real digits, with a report
	$(BIN)/triptych-train -m ablation=objectives

# PAPERS="vdm_steps vdm_schedules": these alone
PAPERS := $(basename $(notdir $(wildcard configs/paper/*.yaml)))
papers: install  ## published claims at small scale, those that were not run yet, and docs/results.md of all
	@n=0; ended=0; for p in $(PAPERS); do n=$$((n + 1)); echo "[$$n/$(words $(PAPERS))] $$p"; \
		sed -n 's/^# First: triptych-train //p' configs/paper/$$p.yaml | \
			while read -r first; do $(BIN)/triptych-train $$first < /dev/null; done; \
		$(BIN)/triptych-train -m paper=$$p || { code=$$?; [ $$code = 3 ] || ended=$$code; }; done; \
	$(BIN)/triptych-report --results docs/results.md logs/sweeps && exit $$ended

# two rows of runs at once, a core each; fails if one of them does
row = for e in $(1); do $(BIN)/triptych-train experiment=$$e threads=1 < /dev/null || exit; done
both = ($(call row,$(1))) & first=$$!; ($(call row,$(2))); code=$$?; wait $$first && [ $$code = 0 ]

imagen: install  ## text to image: both stages of the cascade, then pictures of a prompt (docs/imagen.md)
	@$(call both,imagen_base,imagen_sr)
	$(BIN)/triptych-sample cascade=[logs/runs/imagen_base,logs/runs/imagen_sr] prompt="three red squares" out=samples/imagen

# in this order, as each needs those before it; one that is finished is not run again
dalle2: install  ## a small DALL-E 2: contrastive model, prior, decoder, upsampler, all in a row (docs/dalle2.md)
	@$(call both,shapes_classifier,dalle2_contrastive)
	@$(call both,dalle2_decoder,dalle2_prior dalle2_upsampler)
	$(BIN)/triptych-train experiment=dalle2

# Bytecode is written even where PYTHONDONTWRITEBYTECODE is set: else each worker rewrites the asserts of all files anew.
test test-all test-gpu: export PYTHONDONTWRITEBYTECODE :=
test: develop  ## the tests, without the slow ones
	$(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder --max-worker-restart=0 -m 'not slow and not gpu'

test-all: develop  ## all of them
	$(BIN)/python -m pytest

test-gpu: develop  ## those that need a GPU; some need two
	$(BIN)/python -m pytest -m gpu -s

CODE := src tests examples benchmarks requirements docs/*.py
check: develop  ## ruff, ruff-format, mypy
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: develop  ## put the code into shape
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: develop  ## ratios to other packages and hand-written loops, beside the recorded ones; half an hour alone
	for b in estimator training_step unet_step sampler_overhead "sampler_overhead --steps 1000 --repeats 5" sampler_quality growth idle; do \
		set -- $$b; script=$$1; shift; PYTHONPATH=. $(BIN)/python benchmarks/$$script.py $$@ || exit; done
	$(BIN)/python docs/performance.py

clean:  ## remove what was installed and cached, keep the runs
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis build src/*.egg-info
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
