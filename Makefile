# Two commands do everything: make demo, make test. Each sets up .venv itself: minutes the first time, nothing after.
# Settings of yours are kept: PYTHON=python3.13, PIP_INDEX_URL, PIP_FIND_LINKS, UV_TORCH_BACKEND=cpu …

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.PHONY: help setup demo test check bench clean review-server

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready
CPU_TORCH := torch==2.13.0

# Nothing is fetched at run time; one thread is the fastest for tiny models, and makes their bits the same each time.
export HF_HUB_OFFLINE := 1
export PYTHONNOUSERSITE := 1

help:
	@echo "make demo    the whole way on a sample: a CSV in, a tuned model out"
	echo "make test    every test, training on the CPU included"
	echo "make check   style, types, and which package may import which"
	echo "make bench   the benchmarks, each beside its peers"
	echo "make review-server   set up the labelling server ahead, which its first start would do"
	echo "make clean   remove everything that make made, .venv too"

setup: $(READY)

demo: setup
	@$(BIN)/curate demo --to demo

test: setup review-server
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

review-server: setup
	@$(BIN)/curate review serve --only-set-up

check: setup
	@$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_project.py -k "floor or nothing_heavy"

bench: setup
	@$(BIN)/python tests/bench/bench_start.py
	$(BIN)/python tests/bench/bench_import.py
	$(BIN)/python tests/bench/bench_argilla_server.py
	if [ -z "$(ALPACA)" ]; then
	    echo "make bench ALPACA=FILE.jsonl, with instruction, input and output a line, measures scoring, near-duplicates and rendering too."
	    exit
	fi
	$(BIN)/python tests/bench/bench_score.py "$(ALPACA)"
	$(BIN)/python tests/bench/bench_dedup.py "$(ALPACA)"
	$(BIN)/python tests/bench/bench_render.py "$(ALPACA)"

clean:
	@rm -rf .venv demo demo.* dist build .pytest_cache .mypy_cache .ruff_cache unsloth_compiled_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# With an NVIDIA card: the CUDA set as the packages themselves ask for it. Without one: a CPU torch first, and Unsloth
# without its dependencies, which are for CUDA; torchvision from PyPI would break every import beside a CPU torch.
$(READY): pyproject.toml Makefile
	@if command -v uv >/dev/null; then
	    links="$${UV_FIND_LINKS:-$${PIP_FIND_LINKS:-}}"
	    [ -z "$$links" ] || export UV_FIND_LINKS="$${links// /,}"
	    [ -x $(BIN)/python ] || uv venv --quiet --python "$(if $(filter file,$(origin PYTHON)),>=3.11,$(PYTHON))" .venv
	    install="uv pip install --quiet --python $(BIN)/python"
	else
	    $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
	        { echo "Python 3.11 or newer is needed, $(PYTHON) is older or missing: make PYTHON=python3.12 …"; exit 1; }
	    $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null ||
	        { echo "Python's venv is missing: sudo apt install python3-venv"; exit 1; }
	    [ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	    install="$(BIN)/python -m pip install --quiet --disable-pip-version-check"
	fi
	if command -v nvidia-smi >/dev/null && nvidia-smi -L >/dev/null 2>&1; then
	    echo "Setting up .venv for CUDA, some minutes …"
	    $$install -e ".[train,unsloth,review,gguf,dev]"
	else
	    echo "Setting up .venv for the CPU, some minutes …"
	    $$install "$(CPU_TORCH)"
	    $$install -e ".[train,review,gguf,dev]" "$(CPU_TORCH)"
	    $$install --no-deps $$($(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["unsloth"])')
	fi
	touch $@
