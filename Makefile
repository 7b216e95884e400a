# The names of the targets and what they are for: make help.

PLUGIN := vault-plugin-secrets-wechat

# Vault accepts a plugin's version only as semver: v1.2.3 at the tag, then
# v1.2.3-4-gabcdef0, and before the first tag what backend.go says.
# `make build VERSION=v1.2.3` sets another.
VERSION := $(shell git describe --tags --match 'v[0-9]*.[0-9]*.[0-9]*' --dirty 2>/dev/null || sed -n 's/^var Version = "\(.*\)"/\1/p' backend.go)

# The image's name, without a tag: where a registry will have it.
IMAGE := $(PLUGIN)

# The publisher's key: gpg:ID for GnuPG, cosign:REFERENCE for cosign. Without one
# nothing is signed.
SIGN_KEY ?=
export SIGN_KEY

# Executions of each fuzz target, some seconds' worth.
FUZZ := 10000

# Where the end-to-end tests note which of them this machine lacks a program for.
NOT_RUN := bin/not-run

# The older Vaults on which `make compat` runs the end-to-end tests. For each there is
# a scripts/vault-VERSION that pins it.
COMPAT := 1.16

# The options of the benchmark: bin/bench -help. BEFORE may name another build of the
# plugin, with which reads of a cached token are compared.
BENCH := -document docs/benchmarks.md -document docs/benchmarks.zh-CN.md
BEFORE :=

.DEFAULT_GOAL := help
.NOTPARALLEL:

##@ Use

.PHONY: build
build: ## Build the plugin: bin/vault-plugin-secrets-wechat
	scripts/build.sh '$(VERSION)' bin/$(PLUGIN)

.PHONY: simulator
simulator: ## Build the simulator of WeChat: bin/wechatsim
	CGO_ENABLED=0 scripts/aloud.sh 'Building wechatsim' 'seconds, or half a minute on two cores if nothing of it is cached' \
		go build -trimpath -buildvcs=false -o bin/wechatsim ./cmd/wechatsim

.PHONY: dev
dev: build simulator ## Try the plugin on a real Vault, until Ctrl-C
	@scripts/dev.sh

##@ Release

.PHONY: dist
dist: ## Build a release for all platforms into dist/, see docs/release.md; SIGN_KEY signs it
	scripts/dist.sh $(VERSION) $(IMAGE)

.PHONY: image
image: ## Build only the images, for linux, into dist/; IMAGE names them
	scripts/dist.sh $(VERSION) $(IMAGE) -image-only

.PHONY: vulncheck
vulncheck: ## Look for known vulnerabilities in what the plugin is built of
	scripts/vulncheck.sh

##@ Test

.PHONY: test
test: c-compiler format vet lint modules test-race test-release reproducible fuzz e2e ## Everything; .ci/run runs exactly this

.PHONY: test-unit
test-unit: ## The quick loop: unit tests without the race detector
	scripts/aloud.sh 'Running the unit tests' 'half a minute, and two minutes more if nothing is compiled' go test ./...

.PHONY: test-race
test-race: c-compiler
	CGO_ENABLED=1 scripts/aloud.sh 'Running the unit tests with the race detector' 'about five minutes on two cores' \
		go test -race -shuffle=on -timeout 30m ./...

.PHONY: test-release
test-release:
	cd scripts/release && ../aloud.sh 'Testing the release tool' 'about a minute' go test ./...

.PHONY: reproducible
reproducible: ## Build twice, in two folders and for two users, and compare
	scripts/reproducible.sh

.PHONY: fuzz
fuzz: ## Run every fuzz target for a short while; FUZZ=1000000 for longer
	scripts/fuzz.sh $(FUZZ)

.PHONY: e2e
e2e: build simulator ## End-to-end tests on a real Vault
	@rm -f $(NOT_RUN)
	vault=$$(scripts/vault.sh) && \
	VAULT_BIN=$$vault WECHAT_PLUGIN=$$PWD/bin/$(PLUGIN) NOT_RUN=$$PWD/$(NOT_RUN) \
	scripts/aloud.sh 'Running the end-to-end tests' 'about ten minutes' go test -tags e2e -count=1 -v -timeout 30m ./e2e/...
# Last, so that it is seen: what a machine cannot test must not look tested.
	@if [ -s $(NOT_RUN) ]; then echo 'NOT RUN on this machine:'; sort $(NOT_RUN) | sed 's/^/  /'; fi

.PHONY: compat
compat: build simulator ## End-to-end tests on older Vaults, or on VAULT_BIN's server (OpenBao, too), into the README's table
	WECHAT_PLUGIN=$$PWD/bin/$(PLUGIN) scripts/compat.sh $(COMPAT)

.PHONY: bench
bench: build ## Measure a real Vault, see docs/benchmarks.md; BENCH='-runs 1' for a quick look
	CGO_ENABLED=0 scripts/aloud.sh 'Building the benchmark' 'seconds, or a minute on two cores if nothing of it is cached' \
		go build -trimpath -o bin/bench ./bench
	CGO_ENABLED=0 scripts/aloud.sh 'Building what it is compared with' 'seconds' \
		go build -trimpath -o bin/bench-floor ./bench/floor
	vault=$$(scripts/vault.sh) && \
	kv=$$(scripts/pinned.sh kv 'half a minute on two cores' -ldflags='-s -w') && \
	VAULT_BIN=$$vault WECHAT_PLUGIN=bin/$(PLUGIN) KV_PLUGIN=$$kv FLOOR_PLUGIN=bin/bench-floor BEFORE_PLUGIN=$(BEFORE) exec bin/bench $(BENCH)

.PHONY: c-compiler
c-compiler:
	@cc=$$(go env CC) && command -v "$${cc%% *}" >/dev/null || { \
		echo 'The race detector needs a C compiler: install gcc or clang. `make test-unit` and `make e2e` do without.' >&2; \
		exit 1; \
	}

##@ Keep in order

.PHONY: fmt
fmt: ## Format the Go code
	golangci_lint=$$(scripts/lint.sh) && "$$golangci_lint" fmt && cd scripts/release && "$$golangci_lint" fmt

.PHONY: format
format:
	golangci_lint=$$(scripts/lint.sh) && "$$golangci_lint" fmt --diff && cd scripts/release && "$$golangci_lint" fmt --diff

.PHONY: lint
lint: ## Run golangci-lint
	golangci_lint=$$(scripts/lint.sh) && \
	scripts/aloud.sh 'Linting' 'seconds, or five minutes on two cores if nothing is cached' "$$golangci_lint" run && \
	cd scripts/release && ../aloud.sh 'Linting the release tool' 'likewise' "$$golangci_lint" run

.PHONY: vet
vet:
	scripts/aloud.sh 'Vetting' 'seconds, or two minutes on two cores if nothing is cached' go vet -tags e2e ./...
	cd scripts/release && ../aloud.sh 'Vetting the release tool' 'likewise' go vet ./...

.PHONY: modules
modules:
	go mod tidy -diff
	scripts/aloud.sh 'Verifying the modules' 'about half a minute' go mod verify
	cd scripts/release && go mod tidy -diff && ../aloud.sh 'Verifying those of the release tool' 'seconds' go mod verify

.PHONY: clean
clean: ## Remove bin/ and dist/
	rm -rf bin dist

.PHONY: clean-cache
clean-cache: ## Remove the cached builds of Vault, KV, golangci-lint and govulncheck, of every clone
	rm -rf "$${XDG_CACHE_HOME:-$$HOME/.cache}/vault-plugin-secrets-wechat"

.PHONY: help
help: ## Show this
	@awk -F ':.*## ' '/^##@/ { printf "\n%s\n", substr($$0, 5) } /^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
