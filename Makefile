# Run make without a target to see what there is.

SHELL       := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-builtin-rules --no-print-directory --warn-undefined-variables
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# What a caller may set, as in: make dev ARGS='--chaos 503=0.5'
ARGS      ?=
BENCH     ?= .
BENCHTIME ?= 1s
FUZZTIME  ?= 10s
PKG       ?= ./...
TIMEOUT   ?= 15m
WORKERS   ?= 2

# The tools have a go.mod of their own, so that none of their modules enters the product's.
TOOL := go tool -modfile=tools/go.mod

# Modules below the root, such as tests that need what the product must not link.
# tools/ is left out: it holds versions, not code.
NESTED := $(shell find . -mindepth 2 -name go.mod \
	-not -path './tools/*' -not -path './.*' -not -path '*/node_modules/*' -exec dirname {} ';' | sort)

.PHONY: help
help: ## list these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: check
check: ## lint, module files and every test: what a push must pass
	@for part in lint tidy-check test; do printf '\n== %s ==\n' "$$part"; $(MAKE) "$$part"; done

.PHONY: test
test: ## every test with the race detector; installs redis-server if it is missing
	scripts/install-redis.sh
	@for dir in $(NESTED); do (set -x; cd "$$dir" && go test -race -timeout $(TIMEOUT) -bench . -benchtime 1x ./...); done
	go test -race -timeout $(TIMEOUT) $(PKG)

.PHONY: short
short: ## the tests that need no service: seconds, for the inner loop
	go test -short $(PKG)

# One target at a time: go test takes a single fuzz target of a single package.
.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (10s)
	@{ grep -roE '^func Fuzz[[:alnum:]_]+' --include='*_test.go' . || true; } | while IFS=: read -r file target; do \
		(set -x; go test -run '^$$' -fuzz "^$${target#func }$$" -fuzztime $(FUZZTIME) "$$(dirname "$$file")" </dev/null); \
	done

.PHONY: bench
bench: ## benchmarks matching BENCH, each for BENCHTIME (1s), with allocations
	go test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -benchmem $(PKG)
	@for dir in $(NESTED); do (set -x; cd "$$dir" && go test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -benchmem ./...); done

.PHONY: bench-once
bench-once: ## each benchmark once, so that they keep working
	@$(MAKE) bench BENCHTIME=1x

.PHONY: breaker
breaker: ## the breaker's figures: three workers, real Redis, faults; about 15 minutes
	scripts/install-redis.sh
	FERRY_E2E_LONG=1 go test -count=1 -timeout 40m -v -run '^Test(Breaker|Isolation)' ./tests/e2e
	cd tests/bench && go test -run '^$$' -bench Breaker -benchmem -count 5

.PHONY: reliability
reliability: ## the fault suite's figures: parts are killed, frozen or cut off under load; about 25 minutes
	scripts/install-redis.sh
	FERRY_E2E_LONG=1 go test -count=1 -timeout 60m -parallel 2 -v -run '^TestFault' -skip '^TestFaultSoak$$' ./tests/e2e

.PHONY: soak
soak: ## random faults for FERRY_SOAK_FOR (30m), the same ones again with FERRY_SOAK_SEED
	scripts/install-redis.sh
	FERRY_SOAK_FOR=$${FERRY_SOAK_FOR:-30m} go test -count=1 -timeout 10h -v -run "^TestFaultSoak$$" ./tests/e2e

.PHONY: lint
lint: ## golangci-lint, formatting included
	$(TOOL) golangci-lint run

.PHONY: fmt
fmt: ## format the code and tidy go.mod
	$(TOOL) golangci-lint fmt
	go mod tidy

.PHONY: tidy-check
tidy-check: ## fail when a go.mod or go.sum is not tidy
	go mod tidy -diff
	@for dir in tools $(NESTED); do (set -x; cd "$$dir" && go mod tidy -diff); done

.PHONY: vuln
vuln: ## look for known vulnerabilities (asks vuln.go.dev)
	$(TOOL) govulncheck ./...

.PHONY: build
build: ## static binaries api, worker and ferry in bin/
	CGO_ENABLED=0 go build -trimpath -o bin/ ./cmd/...

.PHONY: dev
dev: ## the whole system in one process: make dev ARGS='--chaos 503=0.5'
	go run ./cmd/ferry dev $(ARGS)

.PHONY: up
up: ## docker compose: redis, api, WORKERS (2) workers, dashboard, simulated upstream
	docker compose up --build --detach --scale worker=$(WORKERS)

.PHONY: down
down: ## stop what up started; jobs stay in the redis volume
	docker compose down

.PHONY: logs
logs: ## follow the logs of what up started
	docker compose logs --follow

# .ferry/ stays: it holds the jobs of ferry dev.
.PHONY: clean
clean: ## remove what build, bench and test leave behind
	rm -rf bin coverage.out *.test *.prof
