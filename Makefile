# Every target does its own set-up, in .venv, from the lock files. `make help` explains them.
PYTHON ?= python3
BROKER ?= auto
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
PACKAGES := schemas workers orchestrator
COMPILE := $(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links \
	--strip-extras --allow-unsafe

.DEFAULT_GOAL := help
.PHONY: help setup demo test bench check lock clean

help: ## explain the targets
	@echo "codeconvoy: many coding agents on one repository, and no work is lost"
	@echo
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Needs Python 3.11+ (with venv), make and git; test and bench need a JDK 17+ and Maven, or Docker, too."

setup: $(VENV)/.dev ## make .venv with everything, for work on the project

demo: $(VENV)/.runtime ## modernise a real package with a fleet of agents (BROKER=auto|embedded|kafka)
	$(BIN)/python -m codeconvoy.orchestrator.demo --broker $(BROKER)

test: check ## run all checks and all suites, on a real Kafka and a real Redis
	@command -v java >/dev/null && command -v mvn >/dev/null || docker info >/dev/null 2>&1 || \
		[ -n "$$CONVOY_TEST_KAFKA" ] || { \
		echo "make test needs a Kafka. Install a JDK 17+ and Maven (apt-get install" \
		"openjdk-17-jdk-headless maven), or start Docker, or set CONVOY_TEST_KAFKA=host:port." >&2; exit 1; }
	$(BIN)/python -m tests.run

bench: $(VENV)/.dev ## measure how fast it is, each figure beside its limit (FIGURES="W1a W2" for some)
	@mkdir -p build
	$(BIN)/python -m tests.bench $(FIGURES) --lines build/bench.jsonl

check: $(VENV)/.dev .typeroot/codeconvoy ## run ruff, mypy and import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy $(PACKAGES:%=-p codeconvoy.%)
	$(BIN)/mypy tests
	$(BIN)/lint-imports

lock: $(VENV)/.dev ## write the lock files anew from pyproject.toml
	@mkdir -p build
	$(BIN)/python -c 'import tomllib; groups = tomllib.load(open("pyproject.toml", "rb"))["dependency-groups"]; \
		print(*groups["dev"], sep="\n")' > build/dev.in
	$(COMPILE) --upgrade --extra embedded --extra otel --extra registry --all-build-deps -o requirements.lock pyproject.toml
	$(COMPILE) --upgrade -o requirements-dev.lock requirements.lock build/dev.in

clean: ## remove what these targets made
	rm -rf $(VENV) .typeroot build .convoy *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache
	find $(PACKAGES) tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@command -v git >/dev/null || { echo "git is missing. apt-get install git" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is missing. Install Python 3.11 or later, or say make PYTHON=…" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version) is too old. Install Python 3.11+, or say make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
		echo "$(PYTHON) can't make virtual environments. apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps: what was installed from which lock file.
$(VENV)/.runtime: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --no-index --editable .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.runtime
	$(BIN)/python -m pip install --quiet --require-hashes --no-deps -r requirements-dev.lock
	@touch $@

# mypy reads the packages under their installed names through these links.
.typeroot/codeconvoy:
	@mkdir -p $@
	@for name in $(PACKAGES); do ln -sfn ../../$$name $@/$$name; done
