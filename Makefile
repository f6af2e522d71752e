# Everything runs out of a private .venv, made with nothing but Python's own venv and pip.

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP   := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCK  := $(BIN)/uv pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
         --no-annotate --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
         $(if $(UPGRADE),--upgrade)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench lock clean

help: ## List what there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s  %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## Make .venv from requirements.lock (PYTHON=python3.12: with that Python)
	@:

# A .venv that is already there is used as it is. A pyenv shim or a stub may be on the PATH and not work, hence the trial.
$(STAMP): requirements.lock pyproject.toml
	@fits() { "$$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }; \
	if [ -e $(BIN)/python ] || [ -L $(BIN)/python ]; then \
	    fits $(BIN)/python || { echo "make: the Python in $(VENV) is broken or older than 3.11: run 'make clean' first" >&2; exit 1; }; \
	else \
	    found=; for candidate in $(or $(PYTHON),python3.11 python3); do \
	        if fits "$$candidate"; then found=$$candidate; break; fi; \
	    done; \
	    [ -n "$$found" ] || { echo "make: need Python 3.11 or newer, tried: $(or $(PYTHON),python3.11 python3). Name one: make setup PYTHON=/path/to/python" >&2; exit 1; }; \
	    echo "making $(VENV) with $$("$$found" --version), which takes a minute"; \
	    "$$found" -m venv $(VENV); \
	fi
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip >/dev/null
	@$(PIP) install --require-hashes -r requirements.lock
	@$(PIP) install --no-deps --no-build-isolation -e .
	@touch $@

demo: $(STAMP) ## Run the shop (SERVICES=1: on a real Postgres and broker that it starts; ORDERS=file: with orders of your own)
	@$(BIN)/python -m workers.demo $(if $(SERVICES),--services) $(if $(ORDERS),--orders "$(ORDERS)")

test: $(STAMP) ## Run the tests (ARGS="-k name", JOBS=1: one at a time)
	$(BIN)/python -m pytest -n $(or $(JOBS),auto) --dist loadfile $(ARGS)

check: $(STAMP) ## Lint, formatting, types, direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict sagakit workers
	$(BIN)/lint-imports

bench: $(STAMP) ## Measure (ARGS="--help")
	$(BIN)/python -m tests.bench $(ARGS)

lock: $(STAMP) ## Resolve the lock files anew after a change of dependencies (UPGRADE=1: to the newest versions)
	$(LOCK) --extra dev --output-file requirements.lock >/dev/null
	$(LOCK) --extra flower --output-file deploy/requirements.lock >/dev/null

clean: ## Remove .venv, caches and build products
	rm -rf $(VENV) build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
