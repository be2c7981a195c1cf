# `make demo` and `make test` set up all they need: a virtual environment here, and a real
# control plane (etcd, kube-apiserver, ...) built or found once and kept in the user's cache.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST_ARGS ?=
# Where set (containers often do), each of some hundred processes would compile every module anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test test-compiled compiled unit fuzz lint mutate format generate bench bench-operator e2e kind clean
.DEFAULT_GOAL := help

help: ## what can be made
	@grep -hE '^[a-z%-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | column -t -s '	'

$(VENV)/.installed: pyproject.toml hack/constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"pdserve needs Python 3.11 or newer, $(PYTHON) is {v.major}.{v.minor}: set PYTHON=/path/to/python3.11")'
	@echo "setting up $(VENV) (once, about a minute)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -q --disable-pip-version-check -c hack/constraints.txt -e '.[dev]'
	@touch $@

# On a fresh machine the cluster's programs are made while the virtual environment is.
.PHONY: programs build-programs
build-programs:
	@PYTHONPATH=operator $(PYTHON) -m localcluster.programs $(PROGRAMS) > /dev/null

programs: # PROGRAMS=--kind: kind too, which shares what the others compiled
	@if [ -e $(VENV)/.installed ]; then $(MAKE) -s --no-print-directory $(VENV)/.installed && $(BIN)/pdserve local programs $(PROGRAMS) > /dev/null; \
	else trap 'kill $$(jobs -p) 2> /dev/null' EXIT; \
	  $(MAKE) -s --no-print-directory build-programs & \
	  $(MAKE) -s --no-print-directory $(VENV)/.installed && wait $$!; fi

# Asked first: what follows builds and starts things.
.PHONY: known-model
known-model:
	@$(if $(MODEL),PYTHONPATH=operator $(PYTHON) -m pdserve.models.catalog '$(MODEL)')

demo: known-model programs ## start a local cluster and watch pdserve do its job (KEEP=1 leaves it up, MODEL=smollm2-135m: a real model too)
	@$(BIN)/pdserve demo $(if $(KEEP),--keep) $(if $(MODEL),--model '$(MODEL)')

# Four workers on two cores: one computes (tests/support/lanes.py) while three wait for clusters.
test: programs ## unit, API and cluster tests, on a real control plane
	@$(BIN)/python -m pytest -n 4 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

unit: $(VENV)/.installed ## only the tests that need no cluster
	@$(BIN)/python -m pytest tests/unit -n 2 --dist loadscope --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(VENV)/.installed ## style, types, layers, names, and drift of generated files
	@$(BIN)/ruff check operator tests hack benchmarks
	@$(BIN)/ruff format --check operator tests hack benchmarks
	@$(BIN)/mypy
	@$(BIN)/mypy --config-file tests/mypy.ini --cache-dir .mypy_cache/tests
	@PYTHONPATH=operator $(BIN)/lint-imports --no-logo
	@$(BIN)/python hack/generate.py --check
	@$(BIN)/python hack/check_names.py operator
	@$(BIN)/python hack/check_tests.py tests operator hack benchmarks
	@$(BIN)/python hack/check_docstrings.py operator hack benchmarks
	@$(BIN)/python hack/references.py
	@$(BIN)/python hack/unread_fields.py
	@$(BIN)/python hack/check_compiled.py
	@$(BIN)/python hack/check_sizes.py
	@$(BIN)/python hack/mutate.py --check-accepted
	@$(BIN)/python hack/plain_words.py

compiled: $(VENV)/.installed ## the gateway's request path as C extensions, in build/compiled
	@$(BIN)/python hack/compile.py build/compiled --optimize 3

test-compiled: compiled ## the tests of the request path against it
	@$(BIN)/python -m pytest -o pythonpath='build/compiled .' -m 'not interpreted' -n 2 --dist loadscope tests/unit/gateway tests/unit/http1 tests/unit/forwarding $(PYTEST_ARGS)

mutate: $(VENV)/.installed ## do tests fail when the code is changed a little? (MUTATE_ARGS="--mutants 200 --seed 1")
	@PYTHONPATH=operator:. $(BIN)/python hack/mutate.py $(MUTATE_ARGS)

format: $(VENV)/.installed ## put the code into its standard form
	@$(BIN)/ruff format operator tests hack benchmarks
	@$(BIN)/ruff check --fix-only -q operator tests hack benchmarks

generate: $(VENV)/.installed ## crds/ and docs/reference/api.md from the models
	@$(BIN)/python hack/generate.py

fuzz: $(VENV)/.installed ## every parser against a million odd inputs (FUZZ_ARGS="--only wire --seed 7")
	@$(BIN)/python -m tests.fuzz $(FUZZ_ARGS)

bench: bench-start bench-hostile ## benches of the whole: start and recovery, attacks and losses

bench-%: $(VENV)/.installed ## one bench: a table, and build/bench/NAME.json
	@$(BIN)/python benchmarks/$*.py $(BENCH_ARGS)

bench-operator: bench-operator_scale # benchmarks/operator.py would hide a module of Python's

images: known-model $(VENV)/.installed ## container images (TAG=... REGISTRY=... BASE_IMAGE=... ARCH=amd64,arm64 MODEL=...): sizes, and build/images.json
	@$(BIN)/python hack/images/build.py $(if $(MODEL),--model '$(MODEL)') $(if $(TAG),--tag $(TAG)) $(if $(REGISTRY),--registry $(REGISTRY)) $(if $(BASE_IMAGE),--base-image $(BASE_IMAGE)) $(if $(ARCH),--arch $(ARCH))

kind: images ## a kind cluster with pdserve's images and fake devices, for docs/quickstart.md
	@$(BIN)/pdserve local up --nodes kind --images build/images.json
	@echo "next: docs/quickstart.md, from command 2 on (end: $(BIN)/pdserve local down)" >&2

# In the order in which they run: the last one takes everything down.
E2E_TESTS := $(addprefix tests/e2e/test_,images.py quickstart.py) \
  $(addprefix tests/cluster/test_service_,ready.py output.py requests.py forwarding.py faults.py modes.py life.py) \
  tests/cluster/test_operator_restarts.py tests/cluster/test_kubectl_ask.py \
  $(addprefix tests/e2e/test_,containers.py operator_handover.py nodes.py upgrade.py kubelet_conformance.py uninstall.py)
NODES ?= $(if $(KUBECONFIG),kubeconfig,kind)

# Asked first: the rest takes minutes. 5 nodes are those of kind-config.yaml.
.PHONY: kind-room
kind-room:
	@$(if $(filter kind,$(NODES)),PYTHONPATH=operator $(PYTHON) -m localcluster.kindroom 5 e2e)

e2e: PROGRAMS := --kind
e2e: kind-room programs images ## end-to-end tests on a kind cluster, or the one of $$KUBECONFIG (KEEP=1 leaves it up)
	@$(BIN)/python -m pytest $(E2E_TESTS) --nodes $(NODES) $(if $(KEEP),--keep) --report build/e2e/report.json --verbose -o timeout=600 $(PYTEST_ARGS)

clean: ## remove what was built here (the shared cache of binaries and the images stay)
	rm -rf build $(VENV) operator/*.egg-info hack/images/wheelhouse/*.whl hack/images/wheelhouse/.made-for
