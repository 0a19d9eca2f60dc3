# `make demo` and `make test` work on a bare machine with Python 3.11 or newer: PYTHON is the interpreter of
# the active environment, if that has every line of requirements.txt, else of .venv, made on the first use
# (setup.sh). Any other one: make test PYTHON=/path/to/python
PYTHON = $(or $(shell bash setup.sh --python),$(error the environment could not be set up: see above))
ARGS ?=
PARALLEL = --numprocesses auto --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help demo test test-all lint audit data tables autograder clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1	\2/p' $(firstword $(MAKEFILE_LIST))

demo:  ## the bundled gpt2-mini learns sentiment and completes sonnets, in minutes, without network
	"$(PYTHON)" demo.py $(ARGS)

test:  ## the test suite, on all cores; pass options on with ARGS="-k adamw"
	"$(PYTHON)" -m pytest $(PARALLEL) $(ARGS)

test-all:  ## the tests that are marked slow, too: every combination, every moment of a kill
	"$(PYTHON)" -m pytest $(PARALLEL) -m "" $(ARGS)

lint:  ## ruff: rules and format
	"$(PYTHON)" -m ruff check .
	"$(PYTHON)" -m ruff format --check .

audit:  ## known vulnerabilities of the pinned packages, if the advisory service can be reached (pip-audit)
	"$(PYTHON)" tests/audit.py

data:  ## fill data/ with the course's files; right files are left alone (ARGS="--force" replaces wrong ones)
	"$(PYTHON)" data/download.py $(if $(wildcard ../shared/data),--from ../shared/data) $(ARGS)

tables:  ## the measured tables of README.md and the other pages, from the recorded runs
	"$(PYTHON)" -m studies table

autograder:  ## autograder.zip for Gradescope; the answers to predictions: ARGS="--gold DIR"
	"$(PYTHON)" -m course.autograder build $(ARGS)

clean:  ## remove caches and the demo's runs; data, predictions, other runs and .venv stay
	find . \( -path ./.git -o -path ./.venv \) -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
	rm -rf .pytest_cache .ruff_cache runs/demo runs/demo-*
