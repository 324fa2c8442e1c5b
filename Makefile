# One entry point for people and CI. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT := demo-out
export CARGO_TERM_COLOR ?= auto

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

.PHONY: demo
demo: tools ## Set everything up and stream a recorded question through the small checkpoint
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet .
	mkdir -p $(DEMO_OUT)
	@echo "The checkpoint in tests/golden/dialogue_repo has random weights: expect babble, in sound and text."
	$(BIN)/moshi-rs -v run tests/audio/hello.wav -o $(DEMO_OUT)/answer.wav --stereo --pad 2 --seed 1 \
		--model tests/golden/dialogue_repo

.PHONY: test
test: test-rust test-python ## Set everything up and pass every test

.PHONY: test-rust
test-rust: tools ## Unit, property, parity and hostile-input tests of the Rust crates
	cargo test --workspace --locked

.PHONY: test-python
test-python: develop ## Tests of the Python package, its types and its stubs
	$(BIN)/python -m pytest
	$(BIN)/python -m mypy
	$(BIN)/python -m mypy.stubtest moshi_rs

CARGO_FUZZ := 0.13.2
FUZZ_SECONDS ?= 600
FUZZ_TARGETS ?= gguf safetensors lora weights config

# Stable compilers have the options that count coverage, but hide them.
.PHONY: fuzz
fuzz: export RUSTC_BOOTSTRAP = 1
fuzz: tools ## Fuzz what reads checkpoints: FUZZ_SECONDS for each of FUZZ_TARGETS
	@command -v cargo-fuzz >/dev/null || { echo "error: no cargo-fuzz; cargo install --locked cargo-fuzz@$(CARGO_FUZZ)" >&2; exit 1; }
	for target in $(FUZZ_TARGETS); do \
		cargo fuzz run --fuzz-dir tests/fuzz --target-dir $(abspath target/fuzz) --sanitizer none $$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -len_control=0 -timeout=10 \
			-rss_limit_mb=2048 -malloc_limit_mb=512 -print_final_stats=1 || exit 1; \
	done

.PHONY: develop
develop: $(VENV)/ready ## Build the Python package in place, for development
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --quiet --locked --extras dev

$(VENV)/ready: pyproject.toml | tools
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "maturin>=1.9.4,<2"
	touch $@

.PHONY: lint
lint: develop ## Formatting, clippy, ruff; changes nothing
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: fmt
fmt: develop ## Format Rust and Python
	cargo fmt --all
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: bench
bench: tools ## Step times of the executors, as ratios within one run
	cargo bench -p moshi-benches

.PHONY: wheel
wheel: $(VENV)/ready ## Build a release wheel into dist/
	$(BIN)/maturin build --release --locked --out dist

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf target $(VENV) dist $(DEMO_OUT)

.PHONY: tools
tools:
	@command -v cargo >/dev/null || { echo "error: no Rust compiler; install one from https://rustup.rs" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.10 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than 3.10; set PYTHON=..." >&2; exit 1; }
