# What a person or the CI runs. `make help` lists the targets; plain `make` checks everything a change must pass.
SHELL := /bin/sh
.DEFAULT_GOAL := check

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv
export UV_HTTP_TIMEOUT ?= 180

# An environment is current when its stamp names these files' content and this place.
STAMP := $(VENV)/.setup-$(shell { pwd; cat pyproject.toml hatch_build.py runtime/graft_runtime/layers/lora/native.c requirements/dev.txt requirements/uv.txt; } | cksum | tr ' ' '-')
CHECK_VERSION = -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) else "setup: Graft needs Python \
3.11, 3.12 or 3.13, and %s is %d.%d. Remove an old $(VENV), or name another: make setup PYTHON=python3.12" % (sys.executable, *v))'
# What `make generate` writes, checked in; `make verify` proves that it is up to date.
KSERVE := runtime/graft_runtime/server/kserve
GENERATED := crds docs/crds.md runtime/graft_protocol/schema charts/graft $(KSERVE)/inference_pb2.py $(KSERVE)/inference_pb2.pyi
COMPILE = UV_CUSTOM_COMPILE_COMMAND="make lock" $(UV) pip compile --quiet --universal --python-version 3.11 \
	--generate-hashes --no-emit-index-url $(if $(UPGRADE),--upgrade)

.DELETE_ON_ERROR:
.PHONY: help check setup demo test test-slow test-stores test-control-plane test-faults test-gpu conformance lint fmt type imports generate verify lock clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

check: lint type imports test  ## everything a change must pass (the default)

setup: $(STAMP)  ## make or refresh .venv from the locked, hash-checked requirements

$(STAMP): | $(VENV)/pyvenv.cfg
	@$(BIN)/python $(CHECK_VERSION)
	@echo "setup 2/4: fetch the installer (uv, hash-checked)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	@echo "setup 3/4: install the locked packages (about 2.5 GB the first time, then from uv's cache)"
	@$(UV) pip sync --python $(BIN)/python --require-hashes requirements/dev.txt
	@echo "setup 4/4: install Graft itself, editable"
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@rm -f $(VENV)/.setup-* && touch $@
	@echo "setup: done; $$($(BIN)/python --version) in $(VENV)"

$(VENV)/pyvenv.cfg:
	@$(PYTHON) $(CHECK_VERSION)
	@echo "setup 1/4: create $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "setup: $(PYTHON) cannot make environments (on Debian and Ubuntu: install python3-venv)" >&2; exit 1; }

demo: setup  ## the main job on this machine, end to end (KEEP=1 leaves it running)
	@KEEP=$(KEEP) $(BIN)/python -m examples.quickstart.demo

test: setup  ## the fast tests (PYTEST_ARGS=... adds arguments)
	$(BIN)/python -m pytest -m "not slow and not gpu and not control_plane" $(PYTEST_ARGS)

test-slow: setup  ## the tests that take minutes
	$(BIN)/python -m pytest -m "slow and not gpu and not control_plane" $(PYTEST_ARGS)

test-control-plane: setup  ## the tests that need a real API server, brought up if none is
	$(BIN)/python -m e2e.cluster up --control-plane
	$(BIN)/python -m pytest -m "control_plane and not slow" $(PYTEST_ARGS) tests/control_plane

test-faults: setup  ## the operator killed at every write and broken in every way, on a real API server (many minutes)
	$(BIN)/python -m e2e.cluster up --control-plane
	$(BIN)/python -m pytest -m "control_plane and slow" $(PYTEST_ARGS) tests/control_plane

conformance: setup  ## the real clients, from the package index, against a live pod (CLIENTS="openai ..." picks some)
	@$(BIN)/python -m conformance $(CLIENTS)

# Other people's servers of the stores' interfaces; what cannot be had here is skipped with a word.
STORES := $(CURDIR)/build/stores
test-stores: setup  ## the sources against real servers, fetched with go and npm where those are
	@mkdir -p $(STORES)
	@test -x $(STORES)/fake-gcs-server || GOBIN=$(STORES) go install github.com/fsouza/fake-gcs-server@v1.54.0 || echo "test-stores: go could not make the server of Google's interface"
	@test -d $(STORES)/node_modules/azurite || npm install --prefix $(STORES) --no-audit --no-fund --ignore-scripts azurite@3.37.0 || echo "test-stores: npm could not fetch the server of Azure's interface"
	@program=$$($(CLUSTER) program minio) && ln -sf "$$program" $(STORES)/minio || echo "test-stores: go could not make the server of Amazon's interface"
	$(BIN)/python -m pytest -m slow $(PYTEST_ARGS) tests/runtime/sources/test_real_stores.py tests/operator/cli/test_publish_stores.py

HAS_GPU = $(BIN)/python -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'

test-gpu: setup  ## the tests that need a CUDA device; without one it says so and tests nothing
	@if $(HAS_GPU); then $(BIN)/python -m pytest -m gpu $(PYTEST_ARGS); \
	else echo "test-gpu: there is no CUDA device on this machine: nothing was tested"; fi

lint: setup  ## ruff's rules and layout
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

fmt: setup  ## let ruff lay out and mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: setup  ## mypy, strict
	$(BIN)/python -m mypy

imports: setup  ## the layers between rooms and planes
	$(BIN)/lint-imports --no-logo

generate: setup  ## rewrite the files made from the models: CRDs, schemas, chart
	$(BIN)/python -m graft_operator.resources.crdgen
	$(BIN)/python -m graft_protocol.schemas
	$(BIN)/python -m charts.generate
	$(BIN)/python -m grpc_tools.protoc -I runtime --python_out=runtime --pyi_out=runtime $(KSERVE)/inference.proto

verify: generate  ## fail when a generated file is not checked in as generated
	@git diff --exit-code -- $(GENERATED)
	@new=$$(git ls-files --others --exclude-standard -- $(GENERATED)); test -z "$$new" || { echo "verify: not checked in: $$new" >&2; exit 1; }

lock: setup  ## resolve requirements/*.txt again (UPGRADE=1 takes newer versions)
	$(COMPILE) -c requirements/constraints.in pyproject.toml --extra operator --extra runtime --extra dev -o requirements/dev.txt
	$(COMPILE) -c requirements/dev.txt pyproject.toml --extra operator -o requirements/operator.txt
	$(COMPILE) -c requirements/dev.txt pyproject.toml --extra runtime -o requirements/runtime.txt
	$(COMPILE) -c requirements/dev.txt requirements/uv.in -o requirements/uv.txt
	$(COMPILE) -c requirements/dev.txt requirements/build.in -o requirements/build.txt
	@! grep -n '://' requirements/*.txt || { echo "lock: an address got into a lock" >&2; exit 1; }

clean:  ## remove caches and builds (.venv stays; remove it by hand)
	rm -rf build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find operator runtime tests examples bench charts e2e -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

# Needs nothing but the standard library, so no environment.
CLUSTER := $(PYTHON) -m e2e.cluster

cluster:  ## bring up a Kubernetes for tests: KUBECONFIG's, kind's, or one built here (CONTROL_PLANE=1: no node)
	@$(CLUSTER) up $(if $(CONTROL_PLANE),--control-plane)

cluster-down:  ## take it down and leave nothing behind (PURGE=1 forgets its images, too)
	@$(CLUSTER) down $(if $(PURGE),--purge)

cluster-env:  ## print what a shell needs to use it: eval "$$(make -s cluster-env)"
	@$(CLUSTER) env

images:  ## build both images, with docker, podman or the cluster's BuildKit
	@$(CLUSTER) images

e2e: setup  ## the stories on a real cluster, brought up if none is (PYTEST_ARGS=... adds arguments)
	@$(BIN)/python -m e2e $(PYTEST_ARGS)

.PHONY: e2e cluster cluster-down cluster-env images
