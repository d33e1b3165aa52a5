# Needs Python 3.11 or newer, make and a C compiler; the rest is installed into .venv.
#
#   make demo      runs the main job on built-in cases and writes runs/rare_disease_demo/report.html
#   make test      runs the essential tests
#   make test-all  runs all tests, the live comparison with transformers, and lint
#   make lint      ruff (lint, imports, format) and mypy

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DEMO := runs/rare_disease_demo
PYTEST := -m pytest tests -n 2 --dist loadfile --max-worker-restart=0
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help demo test test-all test-oracles lint constraints clean

help:
	@sed -n 's/^# \{0,1\}//p' $(firstword $(MAKEFILE_LIST)) | head -6

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip
	$(RUN) -m pip install --quiet --editable '.[test]'
	touch $@

demo: $(VENV)/installed
	$(RUN) -m rft_jax.tasks rare_disease --to=$(DEMO)/data
	$(RUN) -m rft_jax.main --config=configs/rare_disease_demo.py:continued --workdir=$(DEMO)/continued
	$(RUN) -m rft_jax.main --config=configs/rare_disease_demo.py --workdir=$(DEMO)
	@echo "open $(DEMO)/report.html"

test: $(VENV)/installed
	$(RUN) $(PYTEST) -m 'not full'

test-all: $(VENV)/installed lint
	$(RUN) $(PYTEST)
	$(MAKE) test-oracles

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# The same numbers from transformers, live: torch (CPU) is large, so it has a place of its own.
.venv-oracles/installed: setup.cfg
	$(PYTHON) -m venv .venv-oracles
	.venv-oracles/bin/python -m pip install --quiet --upgrade pip
	.venv-oracles/bin/python -m pip install --quiet torch==2.13.0
	.venv-oracles/bin/python -m pip install --quiet --editable '.[test]'
	touch $@

test-oracles: .venv-oracles/installed
	.venv-oracles/bin/python -m pytest tests/oracles

# The versions that the tests last ran with, for those who want the same.
constraints: $(VENV)/installed
	$(RUN) -m pip list --format=freeze --exclude-editable | grep -v '^pip==\|^setuptools==' > constraints.txt

clean:
	rm -rf $(VENV) .venv-oracles .cache build *.egg-info
