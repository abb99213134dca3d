# The commands of developers and CI. Each target installs the packages it needs first, and is safe to run again.
.PHONY: run check test soak fuzz build man sbom bench bench-control bench-edge bench-dns bench-stack bench-speech clean help
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 16

run: ## build everything and play the story: a region dies during calls
	tools/setup run
	cargo build --locked --bins
	tools/fetch-models
	target/debug/meridian demo

check: ## formatting, lints, dependencies, documentation
	tools/setup test
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
	tools/deny
	RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --quiet
	@echo "make check: passed"

test: ## every test but those of `make soak`
	tools/setup test
	SOAK_FOLLOWS=$(if $(filter soak,$(MAKECMDGOALS)),yes) tools/timed "make test" tools/test

soak: ## the slow tests: ten minutes without a quorum, two of deaths, hundreds of small worlds, a minute per fuzz target, the large recognizer
	tools/setup test
	tools/timed "make soak" tools/soak

fuzz: ## fuzz every parser of outside input; FUZZ_SECONDS=60 for each target
	tools/setup run
	tools/fuzz

build: ## optimised binaries in target/release
	tools/setup run
	cargo build --locked --workspace --bins --release

man: ## the man pages of the meridian command, written to target/man
	tools/setup run
	cargo build --locked --bins
	target/debug/meridian man target/man

sbom: ## the software bill of materials (CycloneDX), written to target/sbom.cdx.json
	tools/setup run
	tools/sbom

bench: ## latency, start-up and memory of the world, written to docs/benchmarks.md (release build)
	tools/setup run
	cargo build --locked --workspace --bins --release
	tools/fetch-models
	target/release/bench-world

bench-control: ## decisions, ingest and publication to 1,000 nodes, written to docs/benchmarks/control-plane.json
	tools/setup run
	cargo bench --locked -p server --bench control

bench-edge: ## the edge beside nginx and HAProxy, mutual TLS to stacks on beside off, written to docs/benchmarks.md and docs/benchmarks/edge.json (release build)
	tools/setup bench
	cargo build --locked --workspace --bins --release
	target/release/bench-edge

bench-dns: ## the name server beside gdnsd and Knot, written to docs/benchmarks.md and docs/benchmarks/dns.json (release build)
	tools/setup bench
	cargo build --locked --workspace --bins --release
	target/release/bench-dns

bench-stack: ## a live caller beside thirty uploads, memory of a silent session, written to docs/benchmarks.md (release build)
	tools/setup run
	cargo build --locked --workspace --bins --release
	tools/fetch-models
	target/release/bench-stack

bench-speech: ## recognition of people: word errors and processor time by recognizer, written to docs/benchmarks.md (release build)
	tools/setup test
	cargo build --locked --workspace --bins --release
	tools/fetch-models
	tools/fetch-people
	target/release/bench-speech

clean: ## remove build output; libtorch and .venv stay
	cargo clean
