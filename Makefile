# The front door. `make help` lists the targets; each says in its script what
# it installs and does nothing twice. Only `make install` touches this host's
# kernel; everything else that needs one runs in a throwaway VM.

SHELL := /bin/bash
.DEFAULT_GOAL := help

KERNEL ?= 6.12
FILTER ?=
PREFIX ?= /usr/local
DESTDIR ?=
BENCH ?=

DST_VM = target/release/dst-vm

##@ See it

demo: vm-tools ## four nodes, one device, ext4 and LVM on it, in a VM
	$(DST_VM) demo

##@ Test it

test: vm-tools lint setup-interop ## unit tests and the VM tests on one stock kernel
	tests/run $(KERNEL)

test-all: vm-tools lint setup-interop ## the same on every kernel: 6.1, 6.12 and sid's
	tests/run 6.1 6.12 sid

test-faults: vm-tools lint setup-interop ## all of it with the long fault tests, then on the debug kernel
	tests/run --faults $(KERNEL) debug

test-vm: vm-tools ## only VM tests: KERNEL=6.12 (or debug) FILTER=part-of-a-name
	$(DST_VM) run --kernel $(KERNEL) $(if $(FILTER),--filter $(FILTER)) $(if $(FAULTS),--faults)

lint: setup-lint ## formatting, clippy, shellcheck
	cargo fmt --all --check
	cargo clippy --all-targets --quiet -- -D warnings
	shellcheck -x .ci/run tests/run scripts/*.sh tests/vm/*.sh tests/vm/bench/*.sh tests/vm/cases/*.sh \
		tests/interop/run tests/interop/*.sh tests/interop/cases/*.sh

test-interop: build setup-interop ## the node server with real NBD clients: FILTER=part-of-a-name
	tests/interop/run $(FILTER)
	CLIENTS=trixie tests/interop/run $(FILTER)

bench-export: build setup-bench ## dstd export beside nbdkit, qemu-nbd, nbd-server: BENCH="--quick"
	cargo run --release --quiet -p dst-bench-export -- $(BENCH)

bench: vm-tools ## DST beside nbd.ko, nvme-tcp and iSCSI, in VMs: BENCH="--mode icount --jobs randread-4k-qd32"
	target/release/bench-vm $(BENCH)

##@ Build it

build: setup-build ## the dstd binary
	cargo build --release --quiet

module: setup-modules ## dm-dst.ko for KERNEL (6.1, 6.12 or sid), sparse-checked
	scripts/build-module.sh $(KERNEL) --sparse

modules: setup-modules ## dm-dst.ko for all three kernels, sparse-checked
	scripts/build-modules.sh

##@ Install it on this host

install: build ## module (DKMS), daemon, udev rule and systemd units
	DESTDIR=$(DESTDIR) scripts/install.sh $(PREFIX)

uninstall: ## what install put there
	DESTDIR=$(DESTDIR) scripts/install.sh --remove $(PREFIX)

##@ Help

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^##@/ {printf "\n%s\n", substr($$0, 5)} \
		/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

clean: ## what was built in this tree (caches stay: docs/testing.md)
	cargo clean

setup-build:
	@scripts/setup-host.sh build

setup-lint: setup-build
	@scripts/setup-host.sh lint

setup-interop:
	@scripts/setup-host.sh interop

setup-bench:
	@scripts/setup-host.sh bench

setup-modules:
	@scripts/setup-host.sh modules

vm-tools: setup-build
	@scripts/setup-host.sh vm
	@cargo build --release --quiet --workspace

.PHONY: demo test test-all test-faults test-vm test-interop bench bench-export lint build module modules install uninstall \
	help clean setup-build setup-lint setup-interop setup-bench setup-modules vm-tools
