PYTHON ?= python3
BIN := .venv/bin
PINNED := $(BIN)/python -m pip install --quiet --require-hashes --no-deps

.PHONY: install quickstart down test test-limited lint audit soak bench

install: .venv/.installed

.venv/.installed: pyproject.toml $(wildcard constraints*.txt)
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, found " + sys.version.split()[0]) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(PINNED) -r constraints-build.txt
	$(PINNED) -r constraints-torch-cpu.txt 2> /dev/null || $(PINNED) -r constraints-torch.txt
	$(PINNED) --no-build-isolation -r constraints.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable '.[dev]'  # adds what a GPU build of torch needs
	@touch $@

quickstart: install
	$(BIN)/python -m flows.cli.quickstart

down: install
	$(BIN)/ptp down

# With compiled files, even if the environment wants none: some eighty processes of a run import the same modules.
export PYTHONDONTWRITEBYTECODE :=

test: install
	$(BIN)/python -m pytest -m 'not soak' --numprocesses 6  # tests/schedule.py says which tests stay together

# The tests that compute, rounded as on a processor without AVX-512: no test may depend on how this machine rounds.
LIMITED := ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2
COMPUTING := tests/test_tiny.py tests/tuning tests/serving tests/models tests/prompts tests/evaluation/test_baselines.py \
  tests/evaluation/test_chat.py tests/evaluation/probes tests/flows/stages/test_judge.py tests/flows/stages/test_generation.py

test-limited: install
	$(LIMITED) $(BIN)/python -c 'import torch; print("limited to", torch.backends.cpu.get_cpu_capability())'
	$(LIMITED) $(BIN)/python -m pytest -m 'not soak and not servers' $(COMPUTING) --ignore tests/models/test_chat.py --numprocesses 3

lint: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

audit: install  # known vulnerabilities of what is installed; build/sbom.json lists it (CycloneDX)
	.ci/audit

soak: install
	$(BIN)/python -m pytest tests -m soak --timeout 3600 --capture=no

bench: install  # the figures of training, evaluation and serving in docs/performance.md; wants a quiet machine
	for dtype in float32 bfloat16; do for length in 100 20; do \
	  $(BIN)/python -m benchmarks.train_step --dtype $$dtype --prompt-length $$length || exit 1; \
	  $(BIN)/python -m benchmarks.memory --dtype $$dtype --prompt-length $$length || exit 1; done; \
	  $(BIN)/python -m benchmarks.gang --dtype $$dtype || exit 1; \
	  $(BIN)/python -m benchmarks.ensemble --dtype $$dtype || exit 1; \
	  $(BIN)/python -m benchmarks.evaluation --dtype $$dtype || exit 1; \
	  $(BIN)/python -m benchmarks.serve_mixed --dtype $$dtype || exit 1; done
	$(BIN)/python -m benchmarks.checkpoint
	PTP_TASKS=benchmarks/fixtures/opinions OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.search --base taught --task opinions
