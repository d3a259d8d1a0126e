# Two commands matter: `make demo` and `make test`. Needs GNU make 3.81 or newer and Python 3.11 or newer.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check fuzz hostile proto web edge-binary clean

# The first Python here that is new enough; `make PYTHON=... demo` takes another.
PYTHON ?= $(shell for python in python3.13 python3.12 python3.11 python3; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; break; fi; done)

BORDERS = messages filters http tokens pictures gallery
SECONDS ?= 120

PIP_FLAGS = --quiet --disable-pip-version-check

help: ## What there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: .venv-demo/installed ## Draw a gallery, index it, serve it, ask it; KEEP=1 leaves the server running
	@.venv-demo/bin/pocketlens-demo $(if $(filter-out 0 no,$(KEEP)),--keep)

test: check ## Everything that CI runs: check, then the tests
	@echo "Tests"
	@.venv/bin/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

check: .venv/installed ## Style, types and import contracts
	@echo "Style"
	@.venv/bin/ruff check --quiet .
	@.venv/bin/ruff format --quiet --check . || { echo "Not formatted: run .venv/bin/ruff format ."; exit 1; }
	@echo "Types"
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 .venv/bin/pyright --pythonpath .venv/bin/python
	@echo "Import contracts"
	@.venv/bin/lint-imports --no-cache

hostile: .venv/installed ## Try the checklist of hostile inputs against a server started for it: a minute
	@.venv/bin/pocketlens-bench hostile

fuzz: .venv/installed ## Look for hostile inputs nobody thought of; SECONDS=600 for each border (120), Linux on x86-64
	@.venv/bin/python -m pip install $(PIP_FLAGS) --editable '.[fuzz]'
	@mkdir -p build/fuzz
	@for border in $(BORDERS); do echo "Fuzzing $$border, $(SECONDS) s"; \
		.venv/bin/python tests/fuzz/atheris_run.py $$border --seconds $(SECONDS) >build/fuzz/$$border.log 2>&1 \
			|| { tail -n 30 build/fuzz/$$border.log; exit 1; }; tail -n 1 build/fuzz/$$border.log; done

proto: .venv/installed ## Write the generated code of the wire schema anew
	@.venv/bin/python -m grpc_tools.protoc -Iprotos --python_out=protos --pyi_out=protos \
		--grpc_python_out=protos protos/pocketlens_wire/v1/*.proto
	@if [ -d edge/web/node_modules ]; then .venv/bin/python -m grpc_tools.protoc -Iprotos \
		--plugin=protoc-gen-es=edge/web/node_modules/.bin/protoc-gen-es --es_opt=target=ts \
		--es_out=edge/web/src/gen protos/pocketlens_wire/v1/retrieval.proto; \
	else echo "The page's code was not written anew: run make web first, then make proto again"; fi

web: edge/web/node_modules/installed ## Build the browser's page into the service; needs node 20 or newer and npm
	@cd edge/web && npm run --silent build

edge-binary: .venv-binary/installed ## Pack pocketlens-edge without need of Python: dist/; BUNDLE=DIR takes another bundle
	@BUNDLE="$(BUNDLE)" .venv-binary/bin/python -m PyInstaller --noconfirm --log-level WARN \
		--workpath build/edge-binary edge/binary/pocketlens-edge.spec
	@cd dist && tar -czf $$(pocketlens-edge/pocketlens-edge --version | tr ' ' -)-$$(uname -s -m | tr 'A-Z ' 'a-z-').tar.gz pocketlens-edge
	@du -sh dist/pocketlens-edge dist/*.tar.gz

clean: ## Remove the environments, caches and the demo's output
	@rm -rf .venv .venv-binary .venv-demo demo edge/web/node_modules cloud/pocketlens_cloud/serving/page build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# --- environments; made anew only when pyproject.toml changed. Editable, so the code is always the current one.

.venv-demo/installed: pyproject.toml
	$(call make_environment,.venv-demo)
	@echo "Installing the device and the service: about 100 MB to download, no torch"
	@.venv-demo/bin/python -m pip install $(PIP_FLAGS) --editable '.[cloud]'
	@touch $@

.venv-binary/installed: pyproject.toml
	@if [ "$$(uname -s)" = Linux ] && ! command -v objcopy >/dev/null; then \
		echo "Packing needs objcopy. On Debian or Ubuntu: apt install binutils"; exit 1; fi
	$(call make_environment,.venv-binary)
	@if ! .venv-binary/bin/python -c 'import sys, sysconfig; sys.exit(not (sysconfig.get_config_var("Py_ENABLE_SHARED") \
		or sysconfig.get_config_var("PYTHONFRAMEWORK")))'; then \
		echo "This Python was built without its shared library, which packing needs."; \
		echo "On Debian or Ubuntu: apt install libpython3-dev, then make PYTHON=/usr/bin/python3 edge-binary"; exit 1; fi
	@echo "Installing the device and PyInstaller: about 60 MB to download, no torch"
	@.venv-binary/bin/python -m pip install $(PIP_FLAGS) --editable '.[binary]'
	@touch $@

.venv/installed: pyproject.toml
	$(call make_environment,.venv)
	@echo "Installing everything that development needs; on Linux torch brings 3 GB of CUDA libraries along"
	@.venv/bin/python -m pip install $(PIP_FLAGS) --editable '.[dev]'
	@touch $@

edge/web/node_modules/installed: edge/web/package-lock.json
	@command -v npm >/dev/null || { echo "npm is needed to build the page. Install node 20 or newer, which brings it."; exit 1; }
	@cd edge/web && npm ci --silent --no-fund --no-audit
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
