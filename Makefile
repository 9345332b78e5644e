# `make` lists the commands.
.DEFAULT_GOAL := help
.PHONY: help demo gameday test quick-checks lints servers-for-tests suites-of-tables other-suites postgres-13 postgres-18 small-demo fuzz fuzz-rules matrix bench check features documentation pictures packages cargo

SHELL := /bin/bash
export CARGO_NET_RETRY ?= 5
export CARGO_TERM_COLOR ?= auto

# Tests start servers of their own and ignore those of the environment.
WITH_OWN_SERVERS = env -u DATABASE_URL -u REDIS_URL -u UNLEASH_URL
SERVERS_FOR_TESTS = $(WITH_OWN_SERVERS) scripts/servers

# A test whose server is not installed is skipped, with a warning. REQUIRE=1 makes it fail.
ifdef REQUIRE
SERVERS_FOR_TESTS += --require
export TESTKIT_REQUIRE_SERVERS = 1
endif

# A heading with the time since the start.
START := $(shell date +%s)
stage = @printf '\n=== [%3d s] %s\n' $$(( $$(date +%s) - $(START) )) '$(1)'

help:
	@echo 'make demo    a payments service is deployed and migrated under load, on real servers, live on screen'
	@echo '             ROWS=100000 RATE=200   size of the table, requests per second'
	@echo '             ORDERS=file.csv        your own table of orders instead of a generated one'
	@echo '             COLUMNS=status=state   names of its columns, if they differ'
	@echo '             SECOND=1               a second migration of the same table after the first'
	@echo '             BREAK=rule             take one safety rule out (agree, compare or drain), to see that the checker finds the damage'
	@echo '             SHAPE=key              another shape instead: key, split, columns, own-table, partitions or constraints'
	@echo '             ARGS="…"               anything else for target/demo/demo (see --help)'
	@echo 'make gameday scenarios with faults under load on real servers, each checked; report in target/gameday/report.json'
	@echo '             ARGS="kill failover"   only these (--list names them; --seed N, --rate N, --chaos-seconds N)'
	@echo 'make test    everything that must pass before a merge: checks, units, documentation, features, real servers'
	@echo '             REQUIRE=1              fail where a server is not installed, instead of skipping its tests'
	@echo 'make fuzz    random tables migrate for an hour under random writers, and an independent model checks each'
	@echo '             SECONDS=600            for how long; CUTOVER_FUZZ_SEED=n runs one table again'
	@echo 'make fuzz-rules     leaves each rule of integration-tests/removed-rules out once: random tables must show the damage'
	@echo '             RULES="one two"        only these; SECONDS=110: the limit for each'
	@echo 'make matrix  the suites that query Postgres, on Postgres 13 to 18'
	@echo '             VERSIONS="13 18"       only these'
	@echo 'make check   format, lints, dependency rules, minimum Rust version, packages'
	@echo 'make features       the library with each cargo feature alone, and with none'
	@echo 'make documentation  documentation, with warnings as errors, and the guide as a book in target/book'
	@echo 'make pictures  the pictures of the console in docs/pictures, from its test in Chromium'
	@echo 'make bench   measurements side by side with peers; tables here, numbers in target/bench/*.json'
	@echo '             ARGS="pin fence"       only these (pin dual columns layers fence flip rollback flags killswitch backfill shapes readyz'
	@echo '                                    restarts abuse); --quick measures less, --rows 30000000 backfills more,'
	@echo '                                    --restarts 100 --rate 4000 for restarts, --readyz-rate 10000'

demo: cargo
ifdef SHAPE
	scripts/servers postgres
	cargo build --profile demo -p demo
	target/demo/demo shape '$(SHAPE)' $(if $(RATE),--rate '$(RATE)') $(if $(ROWS),--rows '$(ROWS)') $(ARGS)
else
	scripts/servers postgres redis unleash envoy
ifndef BREAK
	cargo build --profile demo -p payments -p demo
else
	cargo build --profile demo -p demo
	RUSTFLAGS='$(RUSTFLAGS) --cfg cutover_break="$(BREAK)"' CARGO_TARGET_DIR=target/broken cargo build --profile demo -p payments
endif
	target/demo/demo --bin-dir $(if $(BREAK),target/broken/demo --break '$(BREAK)',target/demo) \
		$(if $(ORDERS),--orders '$(ORDERS)') $(if $(COLUMNS),--columns '$(COLUMNS)') $(if $(RATE),--rate '$(RATE)') $(if $(ROWS),--rows '$(ROWS)') $(if $(SECOND),--second) $(ARGS)
endif

# The long form: half an hour of chaos among the rest.
GAMEDAY ?= --chaos-seconds 1800

gameday: cargo
	scripts/servers --require postgres redis unleash envoy prometheus
	scripts/servers faketime || true
	cargo build --release -p payments -p demo -p cutover-cli --bins
	$(WITH_OWN_SERVERS) target/release/demo gameday $(GAMEDAY) $(ARGS)

check: quick-checks lints

# The cheapest first.
quick-checks: cargo
	$(call stage,format)
	cargo fmt --all --check
	$(call stage,minimum Rust version)
	scripts/check-rust-version
	$(call stage,dependency rules)
	scripts/check-dependencies
	$(call stage,packages)
	scripts/check-packages

lints: cargo
	$(call stage,lints)
	@scripts/servers --require openssl
	cargo clippy --workspace --all-targets --all-features -- -D warnings

servers-for-tests:
	$(call stage,servers)
	$(SERVERS_FOR_TESTS)

features: cargo
	$(call stage,features)
	scripts/check-packages
	scripts/check-features

documentation: cargo
	$(call stage,documentation)
	@# Of all packages: for some, their dependencies would be compiled again with fewer features.
	RUSTDOCFLAGS=-Dwarnings cargo doc --no-deps --workspace --lib --all-features
	$(call stage,the guide as a book)
	scripts/check-book

# Always the same features, so that nothing is compiled twice.
CARGO_TEST = cargo test --workspace --all-features

test: quick-checks
	@scripts/servers --require openssl
	@# Servers are downloaded while the lints compile.
	$(MAKE) --no-print-directory -j2 lints servers-for-tests START=$(START)
	$(call stage,units)
	$(CARGO_TEST) --lib --bins
	$(call stage,examples in the documentation)
	$(CARGO_TEST) --doc
	$(MAKE) --no-print-directory documentation START=$(START)
	$(call stage,real servers)
	$(CARGO_TEST) --test '*' --no-run
	@rm -rf target/suites target/matrix && mkdir -p target/suites
	$(MAKE) --no-print-directory -j2 -k suites-of-tables other-suites postgres-13 postgres-18 START=$(START) \
		|| { scripts/failed-tests; exit 1; }
	$(call stage,features and the demo)
	cargo build --workspace --all-features --bins
	$(MAKE) --no-print-directory -j2 features small-demo START=$(START)
	$(call stage,done)

# Two parts at once, because tests wait for their servers a good part of the time. The long ones begin first.
SUITES = RUST_TEST_THREADS=$${RUST_TEST_THREADS:-5} $(CARGO_TEST) --no-fail-fast
PREFIX = 2>&1 | sed -u 's/^/$@: /'
# Kept, so that `make test` ends with the tests that failed.
LOG = 2>&1 | tee target/suites/$@.log $(PREFIX)

suites-of-tables: .SHELLFLAGS := -o pipefail -c
suites-of-tables:
	@mkdir -p target/suites
	@$(SUITES) --test data $(LOG)

other-suites: .SHELLFLAGS := -o pipefail -c
other-suites:
	@mkdir -p target/suites
	@$(SUITES) --test '[!d]*' --test 'd[!a]*' $(LOG)

# The oldest and the newest version, on a part of the tests.
postgres-13 postgres-18: .SHELLFLAGS := -o pipefail -c
postgres-13 postgres-18: postgres-%:
	$(call stage,Postgres $*)
	@$(WITH_OWN_SERVERS) scripts/matrix --short $* $(PREFIX)

# The demo on a small table, and a minute of chaos.
small-demo: .SHELLFLAGS := -o pipefail -c
small-demo:
	$(call stage,the demo on a small table)
	@$(WITH_OWN_SERVERS) target/debug/demo --plain --rows 20000 --rate 50 --bin-dir target/debug \
		--report target/debug/demo-report.json $(PREFIX)
	$(call stage,a minute of chaos)
	@$(WITH_OWN_SERVERS) target/debug/demo gameday --plain --rows 5000 --rate 50 --bin-dir target/debug \
		--report target/debug/gameday/report.json --chaos-seconds 60 chaos $(PREFIX)

fuzz: export SECONDS := $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),3600)
fuzz: cargo
	$(SERVERS_FOR_TESTS) postgres
	$(CARGO_TEST) --test fuzz -- --nocapture

fuzz-rules: export SECONDS := $(if $(filter command line environment,$(origin SECONDS)),$(SECONDS),110)
fuzz-rules: cargo
	$(SERVERS_FOR_TESTS) postgres
	RULES='$(RULES)' $(CARGO_TEST) --test rules -- --ignored --nocapture

matrix: cargo
	$(call stage,Postgres $(or $(VERSIONS),13 to 18))
	$(WITH_OWN_SERVERS) scripts/matrix $(VERSIONS)

bench: cargo
	$(call stage,servers)
	$(SERVERS_FOR_TESTS) postgres unleash envoy
	$(call stage,measurements)
	cargo run --release -p cutover-benches -- $(ARGS)

# The pictures of the guide.
pictures: cargo
	$(SERVERS_FOR_TESTS) --require postgres browser
	$(CARGO_TEST) --test cli -- browser::every_page
	mkdir -p docs/pictures
	cp target/console/migration.png docs/pictures/

cargo:
	@scripts/cargo-is-new-enough
