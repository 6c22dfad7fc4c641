# Main targets: make demo, make test. Both create .venv first, which takes minutes the first time.
# Your settings are respected: PYTHON=python3.13, PIP_INDEX_URL, PIP_FIND_LINKS, UV_TORCH_BACKEND=cpu …

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: help setup demo test check command-table bench clean review-server

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
CPU_TORCH := torch==2.13.0

# No downloads at run time. PYTHONNOUSERSITE keeps packages of the user's home out of .venv.
export HF_HUB_OFFLINE := 1
export PYTHONNOUSERSITE := 1

help:
	@echo "make demo            run all steps on a sample, from a CSV to a fine-tuned model"
	echo "make test            run all tests, including training on the CPU"
	echo "make check           check style, types and layers"
	echo "make bench           run the benchmarks against other tools"
	echo "make review-server   install the labelling server now instead of at its first start"
	echo "make command-table   print the README's table of commands from their help"
	echo "make clean           remove everything that make created, including .venv"

setup: $(READY)

demo: setup
	@$(BIN)/curate demo --to demo

# One thread is fastest for tiny models and gives the same bits on every run.
test: setup review-server
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

review-server: setup
	@$(BIN)/curate review serve --only-set-up

check: setup
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py tests/test_startup.py

command-table: setup
	@PYTHONPATH=tests $(BIN)/python -m support.documents

bench: setup
	@$(BIN)/python tests/bench/bench_start.py
	$(BIN)/python tests/bench/bench_import.py
	$(BIN)/python tests/bench/bench_argilla_server.py
	$(BIN)/python tests/bench/bench_sign_in.py
	if [ -z "$(ALPACA)" ]; then
	    echo "To measure scoring, near-duplicates and rendering too: make bench ALPACA=FILE.jsonl (instruction, input, output per line)."
	    exit
	fi
	$(BIN)/python tests/bench/bench_score.py "$(ALPACA)"
	$(BIN)/python tests/bench/bench_dedup.py "$(ALPACA)"
	$(BIN)/python tests/bench/bench_render.py "$(ALPACA)"

clean:
	@rm -rf .venv demo demo.* dist build .pytest_cache .mypy_cache .ruff_cache unsloth_compiled_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# With an NVIDIA GPU: the CUDA packages as declared. Without: first a CPU torch, then Unsloth without its dependencies,
# which are for CUDA. torchvision from PyPI next to a CPU torch would break every import.
$(READY): pyproject.toml Makefile
	@if command -v uv >/dev/null; then
	    links="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}"
	    [ -z "$$links" ] || export UV_FIND_LINKS="$${links// /,}"
	    [ -x $(BIN)/python ] || uv venv --quiet --python "$(if $(filter file,$(origin PYTHON)),>=3.11,$(PYTHON))" .venv
	    install="uv pip install --quiet --python $(BIN)/python"
	else
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
	        { echo "$(PYTHON) is missing or older than Python 3.11. Choose another: make PYTHON=python3.12 …"; exit 1; }
	    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null ||
	        { echo "Python's venv module is missing. Install it: sudo apt install python3-venv"; exit 1; }
	    [ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	    install="$(BIN)/python -m pip install --quiet --disable-pip-version-check"
	fi
	if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
	    echo "Installing into .venv for CUDA; this takes some minutes …"
	    $$install -e ".[train,unsloth,review,gguf,dev]"
	else
	    echo "Installing into .venv for the CPU; this takes some minutes …"
	    $$install "$(CPU_TORCH)"
	    $$install -e ".[train,review,gguf,dev]" "$(CPU_TORCH)"
	    $$install --no-deps $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["unsloth"])')
	fi
	touch $@
