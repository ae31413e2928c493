# `make serve` sets up and runs the server, `make test` sets up and passes the tests.
# PYTHON=python3.12 picks an interpreter, ARGS="--port 9000" passes options to the server.

VENV ?= .venv
export VENV
# Not the scripts beside it: their first line names this directory, whose name may have a space or a quote.
PYTHON_M := "$$VENV/bin/python" -m
ARGS ?=
# Processes that run the tests; more than the cores, because many tests wait. 0: in this one.
JOBS ?= 3

.PHONY: serve test test-containers lint unit setup setup-dev clean

serve: setup
	$(PYTHON_M) gateway $(ARGS)

test: lint
	$(PYTHON_M) pytest -n $(JOBS)

# Builds and runs the images: needs root, and takes minutes.
test-containers: setup-dev
	@scripts/setup.sh containers
	$(PYTHON_M) pytest tests/containers/test_containers.py tests/containers/check_demonstration.py

lint: setup-dev
	$(PYTHON_M) ruff check .
	$(PYTHON_M) ruff format --check .
	$(PYTHON_M) mypy

unit: setup-dev
	$(PYTHON_M) pytest -n $(JOBS) tests/unit tests/golden

setup:
	@scripts/setup.sh serve

setup-dev:
	@scripts/setup.sh test

clean:
	rm -rf "$$VENV"
