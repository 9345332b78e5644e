# One command each; `make` alone lists them.
.DEFAULT_GOAL := help
.PHONY: help demo gameday test bench check cargo

SHELL := /bin/bash
export CARGO_NET_RETRY ?= 5
export CARGO_TERM_COLOR ?= auto

# Tests always use throwaway servers of their own, never those of whoever runs them.
WITH_OWN_SERVERS = env -u DATABASE_URL -u REDIS_URL -u UNLEASH_URL
SERVERS_FOR_TESTS = $(WITH_OWN_SERVERS) scripts/servers

# Tests of a server that could not be had are skipped, with a warning, unless told otherwise.
ifdef REQUIRE
SERVERS_FOR_TESTS += --require
export TESTKIT_REQUIRE_SERVERS = 1
endif

# A heading per stage, with the time since the start.
START := $(shell date +%s)
stage = @printf '\n=== [%3d s] %s\n' $$(( $$(date +%s) - $(START) )) '$(1)'

help:
	@echo 'make demo    a payments service is deployed and migrated under load, on real servers, live on screen'
	@echo '             ROWS=100000 RATE=200   size of the table, requests per second'
	@echo '             ORDERS=file.csv        your own table of orders instead of a generated one'
	@echo '             BREAK=rule             take one safety rule out (agree, compare or drain), to see the damage being found'
	@echo '             ARGS="…"               anything else for target/release/demo (see --help)'
	@echo 'make gameday bad days: faults under load on real servers, each judged; report in target/gameday/report.json'
	@echo '             ARGS="kill failover"   only these (--list names them; --seed N, --rate N, --chaos-seconds N)'
	@echo 'make test    everything: format, lints, units, documentation, real servers'
	@echo '             REQUIRE=1              fail where a server can only be skipped otherwise'
	@echo 'make check   format and lints only'
	@echo 'make bench   measurements side by side with peers; tables here, numbers in target/bench/*.json'
	@echo '             ARGS="pin fence"       only these (pin dual columns layers fence flip rollback flags killswitch backfill readyz'
	@echo '                                    restarts abuse); --quick measures less, --rows 10000000 backfills more,'
	@echo '                                    --restarts 100 --rate 4000 for restarts, --readyz-rate 10000'

demo: cargo
	scripts/servers postgres redis unleash envoy
ifndef BREAK
	cargo build --release -p payments -p demo
else
	cargo build --release -p demo
	RUSTFLAGS='$(RUSTFLAGS) --cfg cutover_break="$(BREAK)"' CARGO_TARGET_DIR=target/broken cargo build --release -p payments
endif
	target/release/demo $(if $(ORDERS),--orders '$(ORDERS)') $(if $(RATE),--rate '$(RATE)') \
		$(if $(ROWS),--rows '$(ROWS)') $(if $(BREAK),--break '$(BREAK)' --bin-dir target/broken/release) $(ARGS)

# The long form: half an hour of chaos among the rest.
GAMEDAY ?= --chaos-seconds 1800

gameday: cargo
	scripts/servers --require postgres redis unleash envoy prometheus
	scripts/servers faketime || true
	cargo build --release -p payments -p demo -p cutover-cli --bins
	$(WITH_OWN_SERVERS) target/release/demo gameday $(GAMEDAY) $(ARGS)

check: cargo
	$(call stage,format)
	cargo fmt --all --check
	$(call stage,lints)
	cargo clippy --workspace --all-targets --all-features -- -D warnings

# Cheapest first, so that a mistake shows early; always the same features, so that nothing is
# compiled twice.
CARGO_TEST = cargo test --workspace --all-features

test: check
	$(call stage,servers)
	$(SERVERS_FOR_TESTS)
	$(call stage,units)
	$(CARGO_TEST) --lib --bins
	$(call stage,documentation)
	$(CARGO_TEST) --doc
	$(call stage,real servers)
	$(CARGO_TEST) --test '*'
	$(call stage,the demo on a small table)
	cargo build --workspace --all-features --bins
	$(WITH_OWN_SERVERS) target/debug/demo --plain --rows 20000 --rate 50 --bin-dir target/debug \
		--report target/debug/demo-report.json
	$(call stage,a minute of chaos)
	$(WITH_OWN_SERVERS) target/debug/demo gameday --plain --rows 5000 --rate 50 --bin-dir target/debug \
		--report target/debug/gameday/report.json --chaos-seconds 60 chaos
	$(call stage,done)

bench: cargo
	$(call stage,servers)
	$(SERVERS_FOR_TESTS) postgres unleash envoy
	$(call stage,measurements)
	cargo run --release -p cutover-benches -- $(ARGS)

cargo:
	@scripts/cargo-is-new-enough
