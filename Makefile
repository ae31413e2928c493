# `make serve` sets up and runs the server, `make test` sets up and passes the tests.
# PYTHON=python3.12 picks an interpreter, ARGS="--port 9000" passes options to the server.

VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# Processes that run the tests; more than the cores, because many tests wait. 0: in this one.
JOBS ?= 3

.PHONY: serve test lint unit setup setup-dev clean

serve: setup
	$(BIN)/wanstream $(ARGS)

test: lint
	$(BIN)/pytest -n $(JOBS)

lint: setup-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

unit: setup-dev
	$(BIN)/pytest -n $(JOBS) tests/unit tests/golden

setup:
	@VENV=$(VENV) scripts/setup.sh serve

setup-dev:
	@VENV=$(VENV) scripts/setup.sh test

clean:
	rm -rf $(VENV)
