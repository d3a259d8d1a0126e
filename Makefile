# Two commands matter: `make demo` and `make test`. Needs GNU make 3.81 or newer and Python 3.11 or newer.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check proto clean

# The first Python here that is new enough; `make PYTHON=... demo` takes another.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; break; fi; done)

PIP_FLAGS = --quiet --disable-pip-version-check

help: ## What there is to make
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: .venv-demo/installed ## Draw a gallery, index it, serve it, ask it; KEEP=1 leaves the server running
	@.venv-demo/bin/pocketlens-demo $(if $(filter-out 0 no,$(KEEP)),--keep)

test: check ## Everything that CI runs: check, then the tests
	@echo "Tests"
	@.venv/bin/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

check: .venv/installed ## Style, types and import contracts
	@echo "Style"
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check . || { echo "Not formatted: run .venv/bin/ruff format ."; exit 1; }
	@echo "Types"
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright --pythonpath .venv/bin/python
	@echo "Import contracts"
	@.venv/bin/lint-imports --no-cache

proto: .venv/installed ## Write the generated code of the wire schema anew
	@.venv/bin/python -m grpc_tools.protoc -Iprotos --python_out=protos --pyi_out=protos \
		--grpc_python_out=protos protos/pocketlens_wire/v1/retrieval.proto

clean: ## Remove the environments, caches and the demo's output
	@rm -rf .venv .venv-demo demo build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments; made anew only when pyproject.toml changed. Editable, so the code is always the current one.

.venv-demo/installed: pyproject.toml
	$(call make_environment,.venv-demo)
	@echo "Installing the device and the service: about 100 MB to download, no torch"
	@.venv-demo/bin/python -m pip install $(PIP_FLAGS) --editable '.[cloud]'
	@touch $@

.venv/installed: pyproject.toml
	$(call make_environment,.venv)
	@echo "Installing everything that development needs; on Linux torch brings 3 GB of CUDA libraries along"
	@.venv/bin/python -m pip install $(PIP_FLAGS) --editable '.[dev]'
	@touch $@

define make_environment
	@if [ -z "$(PYTHON)" ] || ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
		echo "Python 3.11 or newer is needed and $(if $(PYTHON),$(PYTHON) is not,none was found). Install one"; \
		echo "(Debian 12: apt install python3 python3-venv; macOS: brew install python@3.13),"; \
		echo "or name yours: make PYTHON=/path/to/python3 $(MAKECMDGOALS)"; exit 1; fi
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$(PYTHON) cannot make environments: its venv or ensurepip module is missing."; \
		echo "On Debian or Ubuntu: apt install python3-venv"; exit 1; fi
	@if ! $(1)/bin/python -c 'import pip' 2>/dev/null; then \
		echo "Making $(1) with $$($(PYTHON) --version)"; \
		rm -rf $(1) && $(PYTHON) -m venv $(1); fi
endef
