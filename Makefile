# `make demo` and `make test` do everything, set-up included. `make help` lists the rest.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
NATIVE := aggregathor/ops/libaggregathor_ops.so
SOURCES := $(wildcard aggregathor/locking/*.cc aggregathor/ops/*/*.cc aggregathor/ops/*/*.h aggregathor/ops/*/*.cu \
  aggregathor/ops/*/*.cuh lossympi/*.cc lossympi/*.h lossympi/*/*.cc lossympi/*/*.h)
BUILD = $(BIN)/python setup.py --quiet build_ext --inplace
CPP := $(SOURCES) $(wildcard tests/native/*.cc tests/native/*.h)
# The instruction sets that the kernels are compiled for, as in setup.py.
ISAS := baseline $(if $(filter x86_64,$(shell uname -m)),avx2 avx512)
# Tests in which threads, processes and hosts meet deadlines: they have the machine to themselves,
# but for long ones on a virtual clock.
VIRTUAL := $(addprefix tests/lossympi/test_,broadcast_time.py protocol_twins.py twins.py waiting.py)
TIMED := $(filter-out $(VIRTUAL),$(wildcard tests/lossympi/test_*.py)) tests/lossympi/plane tests/mpi tests/soak
FUZZ_INPUTS ?= 10000000
FUZZ_JOBS ?= 100000
FUZZ_SEED ?= 1
SANITIZED := -O1 -g -fsanitize=address,undefined -fno-sanitize-recover=all
# TensorFlow's start-up chatter; errors are still shown.
export TF_CPP_MIN_LOG_LEVEL ?= 2

.DEFAULT_GOAL := help
.PHONY: help install native demo test test-long test-kernels lint format bench bench-lossympi bench-throughput sanitize fuzz soak wheel package clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /	/' | expand -t 18

install: $(VENV)/installed $(NATIVE) ## make .venv, install what is needed, build the native code for this machine

native: $(VENV)/installed ## build the native code for all instruction sets, and with CUDA where nvcc is
	@AGGREGATHOR_CUDA=$${AGGREGATHOR_CUDA:-$(if $(shell command -v $${NVCC:-nvcc}),1)} $(BUILD)

demo: install ## train on handwritten digits while 2 of 11 workers attack
	@$(BIN)/python -m experiments.demo

test: lint native ## check style and contracts, then run the whole test suite
	@# Two at a time, but for what measures time; the slowest files come early as they are named.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TIMED:%=--ignore=%) $(PYTEST_ARGS)
	$(BIN)/python -m pytest $(TIMED) $(PYTEST_ARGS)

test-long: native ## run the tests that `make test` leaves out: examples in every form, more faults, CUDA kernels on the CPU, the largest stacks
	$(BIN)/python -m pytest -n 2 --dist loadfile -m long $(PYTEST_ARGS)

test-kernels: native ## run the tests of the rules once per instruction set; 8 minutes
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

bench: native ## time the rules against tf.reduce_mean, over n and d; some minutes
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

fuzz: ## feed LossyMPI's protocol with FUZZ_INPUTS hostile inputs (10^7), and make FUZZ_JOBS hostile jobs (10^5)
	scripts/fuzz-lossympi $(FUZZ_INPUTS) $(FUZZ_SEED)
	scripts/fuzz-lossympi jobs $(FUZZ_JOBS) $(FUZZ_SEED)

soak: native ## train for an hour under faults over each transport: SOAK_ARGS="--seconds 600 --seed 7"
	$(BIN)/python -m tests.soak $(SOAK_ARGS)

wheel: install ## build dist/*.whl for all processors, which installs without a compiler
	scripts/make-wheel $(BIN)/python

package: wheel ## try the sdist and the wheel, each in a clean folder; the wheel without a compiler
	scripts/check-package $(BIN)/python
	scripts/check-wheel $(BIN)/python dist/*.whl

clean: ## remove what was built, but neither .venv nor results
	rm -rf build dist *.egg-info $(NATIVE) aggregathor/locking/*.so aggregathor/*/build.json lossympi/_core*.so

# Both at once: what needs no TensorFlow is compiled while it is downloaded.
$(VENV)/installed: pyproject.toml
	@command -v $(PYTHON) >/dev/null || scripts/system-packages $(PYTHON)
	@$(PYTHON) scripts/install $(VENV)

# The install has built it already; this is for when a source changes afterwards.
$(NATIVE): setup.py $(SOURCES) | $(VENV)/installed
	@AGGREGATHOR_INSTRUCTION_SETS=$${AGGREGATHOR_INSTRUCTION_SETS:-native} $(BUILD)
	@touch $@
