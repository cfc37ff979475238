# `make` alone lists the targets. Everything is installed into .venv by packaging/install.py.

PYTHON ?= python3
STAGES ?= 2
BENCH ?= link
DICTS ?= 10000
FUZZ_SECONDS ?= 60
SOAK_SECONDS ?= 600
MINUTES ?= 10
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help build check test test-vllm-matrix test-unit test-gpu ctest asan ubsan tsan fuzz soak chaos demo bench format clean

help:  ## this list
	@sed -n 's/^\([a-z -]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 24

build:  ## create .venv, build and install zmqpp and vLLM into it
	@$(PYTHON) packaging/install.py

check: build  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy zmqpp

# A file's tests stay together, in one process. Three files at a time, also on two cores: many tests wait.
test: build  ## the whole test suite
	@$(PYTHON) packaging/install.py --browser
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# Each version in an environment of its own, which stays: build/vllm-0.30.
test-vllm-matrix: build  ## the contract and integration tests over each supported vLLM; VLLM="0.30 0.31", TESTS="tests/contract"
	@$(PYTHON) packaging/vllm_matrix.py $(if $(VLLM),--vllm $(VLLM)) $(if $(TESTS),--tests $(TESTS))

test-unit: build  ## the tests that need no vLLM
	@$(PYTHON) packaging/install.py --browser
	$(BIN)/python -m pytest -m "not vllm"

# Skipped with its reason where there is no GPU, or no compute-sanitizer. One process: it measures the GPU's memory.
test-gpu: build  ## what needs a GPU: CUDA lanes, streams, kills, kernels under compute-sanitizer; DICTS=10000
	ZMQPP_GPU_DICTS=$(DICTS) $(BIN)/python -m pytest tests/gpu -m gpu

ctest: build  ## the C++ tests and the fuzz corpus, as `make test` runs them
	$(BIN)/python -m pytest tests/cpp tests/fuzz

# All three run the C++ tests, then the conformance suite over an extension built alike. See tests/cpp/__main__.py.
asan ubsan tsan: build  ## C++ tests and conformance suite under a sanitizer
	$(BIN)/python -m tests.cpp $@

fuzz: build  ## changed inputs for every decoder, and for a whole stage; FUZZ_SECONDS=60
	@$(PYTHON) packaging/install.py --fuzz
	$(BIN)/python -m tests.fuzz $(FUZZ_SECONDS)

soak: build  ## two processes, random dicts, every byte checked; SOAK_SECONDS=600
	$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS)

chaos: build  ## faults at random in a pipeline under load, every answer checked; MINUTES=10
	$(BIN)/python -m tests.chaos --minutes $(MINUTES)

# PROMPT is read by the shell, not by make: whatever it holds arrives as it is.
demo: export PROMPT := $(value PROMPT)
demo: build  ## a real pipeline answering a prompt; STAGES=4, PROMPT="..."
	@exec $(BIN)/python -m zmqpp demo --stages "$(STAGES)" $${PROMPT:+--prompt="$$PROMPT"}

bench: build  ## zmqpp beside its peers; BENCH="checksum", BENCH="link --quick"
	@$(PYTHON) packaging/install.py --bench
	@exec $(BIN)/python -m zmqpp.bench $(BENCH)

format: build  ## rewrite the sources in the common format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## remove .venv, builds and caches
	rm -rf .venv build dist logs .pytest_cache .mypy_cache .ruff_cache *.egg-info zmqpp/*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
