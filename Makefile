# `make` alone prints the table of contents: every target below with a ## comment.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

MODULES  := $(shell sed -n 's:^[[:space:]]*\./\(.*\)$$:\1:p' go.work)
SERVICES := ingest normalize detect alert oktawatch
OKTAWATCH := bin/oktawatch
HOUSE    := github.com/oktawatch/oktawatch/pkg/internal/house

# No debug information: the first build of a clone is a sixth faster, and panics and profiles name their lines all the same. Every
# target has the same flags, so that they share one build cache. DEBUG=1 leaves them out, for a debugger. The user's own GOFLAGS
# come last, which is what counts.
FASTER := -gcflags=all=-dwarf=false -ldflags=-w
ifndef DEBUG
export GOFLAGS := $(FASTER) $(filter-out $(FASTER),$(shell go env GOFLAGS 2>/dev/null))
endif
# The compiler itself has memory to spare. For the builds alone: what is built keeps Go's default.
BUILD := GOGC=400 go build

.PHONY: help
help: ## print this list
	@sed -n 's/^\([a-z][a-z-]*\):.*## \(.*\)$$/\1\t\2/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r target words; do printf '  %-14s %s\n' "$$target" "$$words"; done

##-- run

.PHONY: demo
demo: $(OKTAWATCH) ## everything in one process with a simulated Okta org; DEMO_FOR=30s ends by itself
	@$(OKTAWATCH) up --demo $(ARGS)

.PHONY: up
up: $(OKTAWATCH) ## everything in one process against a real org: OKTA_ORG_URL, OKTA_API_TOKEN
	@$(OKTAWATCH) up $(ARGS)

##-- build

.PHONY: $(OKTAWATCH)
$(OKTAWATCH):
	@$(BUILD) -o $@ ./services/oktawatch/cmd/oktawatch

.PHONY: build
build: ## every package, and each service's binary into bin/
	$(BUILD) work
	@for s in $(SERVICES); do echo "go build -o bin/ ./services/$$s/cmd/$$s"; $(BUILD) -o bin/ ./services/$$s/cmd/$$s; done

.PHONY: generate
generate: ## write every generated file again: record types, codec, docs
	go generate $$(go list work)

.PHONY: tidy
tidy: ## go.mod and go.sum of every module (twice, around go work sync)
	@.ci/each-module $(MODULES) -- go mod tidy
	go work sync
	@.ci/each-module $(MODULES) -- go mod tidy
	@GOWORK=off .ci/each-module .ci/tools .ci/compose -- go mod tidy

.PHONY: release
release: ## dist/: static oktawatch for linux and darwin, amd64 and arm64, with checksums
	@.ci/release

.PHONY: images
images: ## a container image of each service: oktawatch/<service>:dev
	@for s in $(SERVICES); do docker build -f deploy/Dockerfile --build-arg SERVICE=$$s -t oktawatch/$$s:dev .; done

##-- check

.PHONY: lint
lint: bin/golangci-lint ## vet, linters, formatting, generated files up to date
	@.ci/lint $(MODULES)

.PHONY: test
test: ## every test that needs Go alone, and the house rules
	go test -timeout 10m $$(go list work | grep -vx $(HOUSE))
	go test -count=1 $(HOUSE)

# Results of tests that `make test` has given for the same packages and versions come from Go's cache.
.PHONY: modules
modules: ## each module alone, without the workspace, as its image and its importers see it
	@export GOWORK=off; bad=0; for m in $(MODULES); do echo "$$m"; \
		(cd "$$m" && go mod verify >/dev/null && go build -mod=readonly ./... && go vet ./... && go test ./...) || bad=1; done; exit $$bad

.PHONY: test-kafka
test-kafka: ## the broker tests on Apache Kafka, one node and three; needs Java and Maven
	@.ci/kafka/test

.PHONY: test-compose
test-compose: ## docker-compose.yml really brought up, each service restarted once; needs root
	@.ci/compose/test

.PHONY: test-long
test-long: ## rules with memory against the naive model, 100,000 cases; every process killed under load over and over (fifteen minutes)
	go test -tags long -count=1 -timeout 30m -v -run 'AgainstModelLong|Explode' ./pkg/engine
	go test -tags long -count=1 -timeout 60m -run "Kill|Trouble" ./services/oktawatch/...

.PHONY: bench
bench: ## the figures of docs/performance.md, one package after the other (five minutes)
	go test -p 1 -timeout 30m -run '^$$' -bench . -benchmem -benchtime 0.3s $$(go list work)

.PHONY: rules
rules: ## every rule of the pack against its own tests
	cd rules && go test -count=1 ./...

.PHONY: docs
docs: generate ## what is generated under docs/

# Linters are pinned in .ci/tools/go.mod, apart from the product's own requirements.
bin/golangci-lint: .ci/tools/go.mod
	@echo "building the linters of .ci/tools (minutes the first time)"
	@cd .ci/tools && GOWORK=off $(BUILD) -o ../../bin/ tool
	@touch $@
