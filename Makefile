# What people and CI run. Everything here installs what it needs first and can be run again at any time.
.PHONY: run test check fuzz build bench bench-control bench-edge clean help
.DEFAULT_GOAL := help

help: ## say what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

run: ## build everything and play the story: a region dies in mid-call
	tools/setup run
	cargo build --workspace --bins
	target/debug/meridian demo

test: check ## every check that CI runs
	cargo test --workspace --no-fail-fast
	@echo "all checks passed"

check: ## formatting, lints, documentation; also builds what the tests start
	tools/setup test
	cargo fmt --all --check
	cargo build --workspace --bins
	cargo clippy --workspace --all-targets -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --quiet

fuzz: ## look for bytes that Meridian fails on; FUZZ_SECONDS=60 for each target, as in CI
	tools/setup test
	tools/fuzz

build: ## optimised binaries in target/release
	tools/setup run
	cargo build --workspace --bins --release

bench: ## latency, start-up and memory of the world, written to docs/benchmarks.md (release build)
	tools/setup run
	cargo build --workspace --bins --release
	target/release/bench-world

bench-control: ## decisions, ingest and publication to 1,000 nodes, written to docs/benchmarks/control-plane.json
	tools/setup run
	cargo bench -p server --bench control

bench-edge: ## the edge beside nginx and HAProxy, written to docs/benchmarks.md and docs/benchmarks/edge.json (release build)
	tools/setup bench
	cargo build --workspace --bins --release
	target/release/bench-edge

clean: ## remove build output; libtorch and .venv stay
	cargo clean
