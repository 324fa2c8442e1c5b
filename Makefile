# One entry point for people and CI. `make help` lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO_OUT := demo-out
CUDA_VENV ?= .venv-cuda
BENCH_VENV ?= .venv-bench
BOX_VENV ?= .venv-box
CLIENTS_VENV ?= .venv-clients
BOX_WORK ?= box-work
BOX_SETTINGS ?=
CUDA_TOOLKIT := 13.0.3
CUDA_PACKAGES := -p moshi-kernels -p moshi-core -p moshi-cli -p moshi-py -p moshi-tests
MANYLINUX := manylinux_2_17
CARGO_ABOUT := 0.9.3
CARGO_DENY := 0.20.2
EXTRAS := dev
# Crates whose documentation is part of the site.
DOCUMENTED := --workspace --exclude moshi-py --exclude moshi-tests --exclude moshi-benches
export CARGO_TERM_COLOR ?= auto

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | sort | expand -t 16

.PHONY: demo
demo: tools ## Set everything up and ask the model in the box a recorded question
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet .
	mkdir -p $(DEMO_OUT)
	$(BIN)/moshi-rs -v run tests/audio/hello.wav -o $(DEMO_OUT)/answer.wav --stereo --pad 5 --seed 1

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
FUZZ_TARGETS ?= gguf safetensors lora weights config ogg opus chat

# Stable compilers have the options that count coverage, but hide them.
.PHONY: fuzz
fuzz: export RUSTC_BOOTSTRAP = 1
fuzz: tools ## Fuzz what reads checkpoints and connections: FUZZ_SECONDS for each of FUZZ_TARGETS
	@command -v cargo-fuzz >/dev/null || { echo "error: no cargo-fuzz; cargo install --locked cargo-fuzz@$(CARGO_FUZZ)" >&2; exit 1; }
	for target in $(FUZZ_TARGETS); do \
		cargo fuzz run --fuzz-dir tests/fuzz --target-dir $(abspath target/fuzz) --sanitizer none $$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=65536 -len_control=0 -timeout=10 \
			-rss_limit_mb=2048 -malloc_limit_mb=512 -print_final_stats=1 || exit 1; \
	done

.PHONY: develop
develop: $(VENV)/ready ## Build the Python package in place, for development
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --quiet --locked --extras $(EXTRAS)

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

.PHONY: docs
docs docs-serve: EXTRAS := dev,docs
docs docs-serve: export NO_MKDOCS_2_WARNING := 1
docs: develop ## Build the site, with the reference of Python and Rust, into site/
	$(BIN)/mkdocs build --strict
	rm -rf target/doc
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps --locked --quiet --lib $(DOCUMENTED)
	cp -r target/doc site/rust
	$(BIN)/python docs/tools/check_site.py site

.PHONY: docs-serve
docs-serve: develop ## Show the site while you write, without the reference of Rust
	$(BIN)/mkdocs serve

.PHONY: reference
reference: develop ## Write the generated pages of the documentation again
	$(BIN)/python docs/tools/cli_reference.py docs/reference/cli.md

.PHONY: test-weights
test-weights: develop ## Load real weights and compare them with PyTorch: MODEL=folder ARGS=...
	@test -n "$(MODEL)" || { echo "error: make test-weights MODEL=folder" >&2; exit 2; }
	$(BIN)/python tests/weights.py "$(MODEL)" $(ARGS)

$(CLIENTS_VENV)/ready: tests/clients/requirements.txt | tools
	$(PYTHON) -m venv $(CLIENTS_VENV)
	$(CLIENTS_VENV)/bin/pip install --quiet --requirement tests/clients/requirements.txt
	@# Its client needs none of what the package depends on.
	$(CLIENTS_VENV)/bin/pip install --quiet --no-deps moshi==0.2.13
	touch $@

.PHONY: test-clients
test-clients: $(CLIENTS_VENV)/ready ## Clients of other projects, as published, against the server
	@# The crates of `make test` again, not built a second time.
	cargo build --workspace --locked --bin moshi-rs
	MOSHI_RS="$(abspath target/debug/moshi-rs)" \
		$(CLIENTS_VENV)/bin/python -m pytest -c /dev/null --rootdir tests/clients tests/clients

SOAK ?=

.PHONY: soak
soak: $(CLIENTS_VENV)/ready ## Keep the server busy for 40 minutes with callers of every kind: SOAK="--seconds 600"
	cargo build --release --locked -p moshi-cli
	MOSHI_RS="$(abspath target/release/moshi-rs)" $(CLIENTS_VENV)/bin/python tests/soak.py $(SOAK)

$(BOX_VENV)/ready: python/recipes/box/requirements.txt | tools
	@for program in espeak-ng flite; do command -v $$program >/dev/null || \
		{ echo "error: no $$program; install the system's package of that name" >&2; exit 1; }; done
	$(PYTHON) -m venv $(BOX_VENV)
	$(BOX_VENV)/bin/pip install --quiet --requirement python/recipes/box/requirements.txt
	touch $@

.PHONY: box
box: $(BOX_VENV)/ready ## Train the model in the box again, into BOX_WORK; hours, 6 GB of packages
	@# The evaluation runs the engine as it is now.
	$(BOX_VENV)/bin/pip install --quiet .
	$(BOX_VENV)/bin/python python/recipes/box/run.py all --work $(BOX_WORK) $(BOX_SETTINGS)

TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
SPEED_MINUTES ?= 14

$(BENCH_VENV)/ready: benches/python/requirements.txt | tools
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/pip install --quiet --requirement benches/python/requirements.txt
	touch $@

.PHONY: bench-torch
bench-torch: $(BENCH_VENV)/ready ## Add PyTorch and its moshi to the peers of `make bench`; 1 GB
	$(BENCH_VENV)/bin/pip install --quiet torch --index-url $(TORCH_INDEX)
	$(BENCH_VENV)/bin/pip install --quiet moshi==0.2.13

.PHONY: bench-build
bench-build: $(BENCH_VENV)/ready ## Build what is measured, for any processor and for this one; slow
	$(BENCH_VENV)/bin/pip install --quiet .
	cargo build --release --locked -p moshi-cli
	RUSTFLAGS="-C target-cpu=native" cargo build --release --locked --target-dir target/native \
		-p moshi-cli -p moshi-benches --bins

.PHONY: bench
bench: bench-build ## Speed against rustymimi, PyTorch (after `make bench-torch`) and Candle, as ratios
	$(BENCH_VENV)/bin/python benches/python/codec_peers.py
	RAYON_NUM_THREADS=1 target/native/release/peers
	target/native/release/peers

.PHONY: bench-kernels
bench-kernels: tools ## Kernels one by one, as shares of memory's rate, then steps of the executors
	cargo bench --locked -p moshi-benches

.PHONY: speed-report
speed-report: bench-build ## Measure all targets in one quiet run of SPEED_MINUTES=14 and write the tables
	$(BENCH_VENV)/bin/python benches/python/speed_report.py --minutes $(SPEED_MINUTES) \
		--write README.md docs/guide/speed.md

# The version of the toolkit is one that cudarc in Cargo.lock knows.
$(CUDA_VENV)/ready: | tools
	$(PYTHON) -m venv $(CUDA_VENV)
	$(CUDA_VENV)/bin/pip install --quiet pytest safetensors \
		"cuda-toolkit[cccl,cublas,cudart,curand,nvcc,nvrtc]==$(CUDA_TOOLKIT)"
	ln -sfn "$$($(CUDA_VENV)/bin/python -c 'import nvidia; print(*nvidia.__path__)')/cu13" $(CUDA_VENV)/cuda
	cd $(CUDA_VENV)/cuda/lib && for library in *.so.*; do ln -sf $$library $${library%%.so.*}.so; done
	@# The linker wants a library of this name, and takes nothing from it.
	mkdir -p $(CUDA_VENV)/cuda/lib/stubs
	echo | cc -shared -Wl,-soname,libcuda.so.1 -o $(CUDA_VENV)/cuda/lib/stubs/libcuda.so -x c -
	touch $@

.PHONY: check-cuda
check-cuda: export CUDA_HOME = $(abspath $(CUDA_VENV)/cuda)
check-cuda: export CUDA_COMPUTE_CAP ?= 80
check-cuda: export LD_LIBRARY_PATH := $(abspath $(CUDA_VENV)/cuda/lib)$(addprefix :,$(LD_LIBRARY_PATH))
check-cuda: export PATH := $(abspath $(CUDA_VENV)/cuda/bin):$(PATH)
check-cuda: export CARGO_TARGET_DIR = $(abspath target/cuda)
check-cuda: $(CUDA_VENV)/ready ## Compile with CUDA and run what needs no GPU; slow, needs 4 GB
	cargo clippy --locked --features cuda --all-targets $(CUDA_PACKAGES) -- -D warnings
	cargo test --locked --features cuda $(CUDA_PACKAGES) -- cuda devices
	$(CUDA_VENV)/bin/pip install --quiet . \
		--config-settings=build-args="--features cuda --profile dev"
	@# Linked to the driver, it would not even be imported on a machine without one.
	module="$$($(CUDA_VENV)/bin/python -c 'import moshi_rs._core as m; print(m.__file__)')"; \
		needed="$$(readelf --dynamic "$$module" | grep NEEDED)"; echo "$$needed"; \
		[[ "$$needed" != *libcuda.so* ]] || { echo "error: $$module is linked to libcuda" >&2; exit 1; }
	$(CUDA_VENV)/bin/python -m pytest tests/python/test_devices.py

.PHONY: wheel
wheel: $(VENV)/ready ## Build a release wheel into dist/
	$(BIN)/maturin build --release --locked --out dist

.PHONY: dist
dist: $(VENV)/release ## Build a portable Linux wheel and the source distribution into dist/
	rm -rf dist
	PATH="$(abspath $(BIN)):$$PATH" $(BIN)/maturin build --release --locked --zig \
		--compatibility $(MANYLINUX) --out dist
	$(BIN)/maturin sdist --out dist

.PHONY: check-dist
check-dist: $(VENV)/release ## Check every file of dist/ as it would be published, for RELEASE_TAG=v... if given
	$(BIN)/python tests/check_dist.py dist $(if $(RELEASE_TAG),--tag "$$RELEASE_TAG")

.PHONY: smoke
smoke: $(VENV)/ready ## Build a wheel, install and try it on every Python found, or on PYTHONS="..."
	rm -rf target/smoke
	$(BIN)/maturin build --release --locked --out target/smoke
	$(BIN)/python tests/smoke_wheels.py target/smoke $(PYTHONS)

.PHONY: licenses
licenses: tools ## Write THIRD-PARTY-LICENSES again, after a change of dependencies
	@command -v cargo-about >/dev/null || { echo "error: no cargo-about; cargo install --locked --features cli cargo-about@$(CARGO_ABOUT)" >&2; exit 1; }
	cargo fetch --locked
	cargo about generate --manifest-path rust/moshi-py/Cargo.toml --features metal --frozen --fail \
		--config about.toml --output-file THIRD-PARTY-LICENSES about.hbs

.PHONY: deny
deny: tools ## Licences, duplicates, layers and sources of the dependencies
	@command -v cargo-deny >/dev/null || { echo "error: no cargo-deny; cargo install --locked cargo-deny@$(CARGO_DENY)" >&2; exit 1; }
	cargo deny --workspace --locked check bans licenses sources

.PHONY: check-workflows
check-workflows: $(VENV)/release ## Check the workflows of .github
	$(BIN)/actionlint
	$(BIN)/zizmor --offline --persona=pedantic .github

$(VENV)/release: pyproject.toml | $(VENV)/ready
	$(BIN)/python -m pip install --quiet "pip>=25.1"
	$(BIN)/python -m pip install --quiet --group release
	touch $@

.PHONY: clean
clean: ## Remove everything that was built
	rm -rf target $(VENV) $(CUDA_VENV) $(BENCH_VENV) $(BOX_VENV) $(CLIENTS_VENV) dist site $(DEMO_OUT)

.PHONY: tools
tools:
	@command -v cargo >/dev/null || { echo "error: no Rust compiler; install one from https://rustup.rs" >&2; exit 1; }
	@command -v $(PYTHON) >/dev/null || { echo "error: no $(PYTHON); install Python 3.10 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "error: $(PYTHON) is older than 3.10; set PYTHON=..." >&2; exit 1; }
