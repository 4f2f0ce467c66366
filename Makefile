# What people run. `make demo` and `make test` need only Rust, git, make and apt;
# everything else is installed by `make deps`.

PACKAGES := qemu-system-x86 qemu-utils ovmf seabios ipxe ipxe-qemu musl-tools gcc libc6-dev \
	iproute2 util-linux kmod e2fsprogs dosfstools mtools gdisk fdisk xorriso zstd xz-utils \
	busybox-static dropbear-bin postgresql python3-venv docker-registry \
	mmdebstrap grub-pc-bin grub-efi-amd64-bin grub-common systemd-boot-efi ca-certificates

TARGET := $(CURDIR)/target
BOOT := $(TARGET)/boot
OS := $(TARGET)/lab/os.raw
SCHEMATHESIS := $(TARGET)/schemathesis-venv
SCHEMATHESIS_VERSION := 4.32.5
SUDO := $(if $(filter 0,$(shell id -u)),,sudo -E)
MUSL := x86_64-unknown-linux-musl
AGENT := $(TARGET)/ferrite-agent
CARGO ?= cargo
# Cargo builds as the caller; only the finished tests run as root, where they need it.
AS_ROOT := $(if $(SUDO),CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(SUDO)")
# The whole workspace each time: with fewer crates, cargo would build their dependencies anew.
E2E := $(AS_ROOT) $(CARGO) test --workspace --test e2e

.PHONY: lifecycle openapi schemathesis fuzz demo test test-all unit simulate bench-deploy bench-conductor bench-imaging failover kills lint deps test-kube build agent boot os node kube-node kube-programs node-double sudo clean help

help:
	@echo "make demo       one virtual host, from powered off to a running OS (KEEP=1 leaves the lab up;"
	@echo "                CLUSTER=kubeconfig: and into that cluster)"
	@echo "make test       what CI runs"
	@echo "make test-all   every case, in parts (PART=name runs one)"
	@echo "make test-kube  a host joins a real control plane, and leaves it, with programs that you have"
	@echo "make bench-deploy   deploy a 2.5 GiB image twice and print where the time went"
	@echo "make bench-conductor   the conductor with 1,000 to 10,000 hosts, and Ironic beside it (QUICK=1: shorter)"
	@echo "make bench-imaging   images to a disk, by our agent and by what people use today (QUICK=1: one run each)"
	@echo "make failover   three conductors on PostgreSQL, the busiest killed every 30 s under 200 deployments"
	@echo "make kills      a conductor killed at each named point of every workflow, and started again"
	@echo "make simulate   a whole conductor in a simulated world (SEEDS=100000 runs more, SEED=7 replays one)"
	@echo "make schemathesis   every call of the OpenAPI document, with what it allows and what it does not"
	@echo "make fuzz       PARSER=qcow2, SECONDS=300: one parser of images, with nightly Rust and cargo-fuzz"
	@echo "make lint       formatting and lints, warnings denied"

# With CLUSTER=kubeconfig the host joins that cluster, with your kubeadm and kubelet in its image.
demo: NODE_ONLY := --node
demo: deps build boot $(if $(CLUSTER),kube-node,os)
	$(SUDO) $(TARGET)/debug/ferrite-lab demo $(if $(KEEP),--keep) $(if $(CLUSTER),--cluster $(CLUSTER))

test: deps lint unit build boot os
	@$(MAKE) --no-print-directory schemathesis QUICK=1
	$(E2E) -- --short

test-all: deps $(if $(PART),,lint unit) build boot os node
	$(if $(PART),,@$(MAKE) --no-print-directory failover kills schemathesis)
	$(E2E) -- $(if $(PART),--part $(PART),--all)

# A host joins a real control plane, and leaves it. The programs are yours: it says which, and where
# they come from.
test-kube: kube-programs deps boot kube-node
	$(E2E) -- --kube

# The long form: 200 deployments, and every 30 s a kill of the conductor that drives most hosts.
failover:
	$(CARGO) build --workspace --bins
	FERRITE_LONG=1 $(CARGO) test --workspace --test replicas -- --nocapture

# The long form: a conductor killed at every named point of every workflow.
kills:
	$(CARGO) build --workspace --bins
	FERRITE_LONG=1 $(CARGO) test --workspace --test kills -- --nocapture

unit:
	$(CARGO) build --workspace --bins
	$(AS_ROOT) $(CARGO) test --workspace --lib --bins --test tidy --test lab \
		--test swarm --test replicas --test kills --test faults --test hostile --test fuzz --test cli \
		--test packaging --test backup --test clusters --test join --test roll --test oci --test registry

# A whole conductor in a simulated world: SEEDS=100000 runs so many, SEED=7 replays one.
simulate:
	SEED=$(SEED) SEEDS=$(or $(SEEDS),1000) FIRST=$(FIRST) $(CARGO) test --release -p ferrite --bin ferrite \
		nothing_that_must_not_happen_does -- --nocapture

bench-deploy: deps build boot
	@$(MAKE) --no-print-directory $(TARGET)/lab/bench.raw.json
	$(SUDO) $(TARGET)/debug/ferrite-lab bench-deploy

# Twelve minutes. Nothing else should run on the machine meanwhile.
bench-conductor:
	$(CARGO) build --release -p ferrite -p ferrite-tests --bins
	$(TARGET)/release/ferrite-lab bench-conductor $(if $(QUICK),--quick) $(ARGS)

# Twenty minutes, six of them in a guest of QEMU, and a few more the first time. Nothing else should
# run on the machine meanwhile. Which package has qemu-img depends on the Debian.
BENCH_IMAGING := curl gzip zstd gdisk fdisk openssl bmap-tools parted python3-venv util-linux \
	qemu-system-x86 seabios busybox-static
bench-imaging: boot
	@$(MAKE) --no-print-directory deps PACKAGES="$(BENCH_IMAGING)"
	@command -v qemu-img >/dev/null || $(MAKE) --no-print-directory deps PACKAGES=qemu-utils
	$(SUDO) $(TARGET)/debug/ferrite-lab bench-imaging $(if $(QUICK),--quick) $(ARGS)

# docs/lifecycle.md, from the code; a test compares it.
lifecycle:
	WRITE_LIFECYCLE=1 $(CARGO) test --workspace --bins lifecycle::guide

# The API's description, from its types; a test compares it.
openapi:
	WRITE_OPENAPI=1 $(CARGO) test --workspace --bins openapi

# Each value that the document allows is taken, each other one refused, and no answer is another
# than it says. As root: the conductor runs in a network without a way out. The same each time;
# SEED=7 has others.
schemathesis: $(SCHEMATHESIS)/$(SCHEMATHESIS_VERSION)
	$(CARGO) build --workspace --bins
	$(SUDO) $(TARGET)/debug/ferrite-lab schemathesis --program $(SCHEMATHESIS)/bin/st $(if $(QUICK),--quick) $(if $(SEED),--seed $(SEED)) $(ARGS)
$(SCHEMATHESIS)/$(SCHEMATHESIS_VERSION):
	rm -rf $(SCHEMATHESIS)
	python3 -m venv $(SCHEMATHESIS)
	$(SCHEMATHESIS)/bin/pip install --quiet --disable-pip-version-check schemathesis==$(@F)
	touch $@

# A parser of images, given what nobody would write: PARSER as in tests/fuzz/Cargo.toml. With nightly
# Rust and cargo-fuzz; what is found lies in tests/fuzz/artifacts, and belongs into the corpus.
PARSER ?= qcow2
fuzz:
	mkdir -p $(TARGET)/fuzz/corpus/$(PARSER)
	CARGO_TARGET_DIR=$(TARGET)/fuzz RUSTUP_TOOLCHAIN=nightly $(CARGO) fuzz run --fuzz-dir tests/fuzz $(PARSER) \
		$(TARGET)/fuzz/corpus/$(PARSER) tests/fuzz/corpus/$(PARSER) -- -max_total_time=$(or $(SECONDS),300)

lint:
	@$(CARGO) clippy --version >/dev/null 2>&1 && $(CARGO) fmt --version >/dev/null 2>&1 \
		|| rustup component add clippy rustfmt
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings

build: agent
	$(CARGO) build --workspace

# A fully static program: $(1) the profile, $(2) the crate, $(3) its program. musl first; without its
# target, static glibc, and it says so.
define static
@if rustup target add $(MUSL) >/dev/null 2>&1 || rustup target list --installed | grep -qx $(MUSL); \
	then echo "$(3): static with musl"; \
		$(CARGO) build --profile $(1) --target $(MUSL) -p $(2) && \
		install -C -m 755 $(TARGET)/$(MUSL)/$(1)/$(3) $(TARGET)/$(3); \
	else echo "$(3): target $(MUSL) cannot be had: static with glibc instead"; \
		RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static" \
		$(CARGO) build --profile $(1) --target x86_64-unknown-linux-gnu -p $(2) && \
		install -C -m 755 $(TARGET)/x86_64-unknown-linux-gnu/$(1)/$(3) $(TARGET)/$(3); fi
endef

agent:
	$(call static,agent,ferrite-agent,ferrite-agent)

# The tests' kubeadm and kubelet, for a guest.
node-double:
	$(call static,double,ferrite-tests-node,node-double)

# Kernel, initramfs, UKI and ISO that hosts boot; made again when the agent or the builder changed.
boot: build
	@$(MAKE) --no-print-directory $(BOOT)/manifest.json
$(BOOT)/manifest.json: $(AGENT) $(TARGET)/debug/ferrite-image
	$(TARGET)/debug/ferrite-image ramdisk --agent $(AGENT) --out $(BOOT)

# The small Debian image that the demo and the tests deploy.
os: build
	@$(MAKE) --no-print-directory $(OS).json
$(OS).json: image-build/src/os.rs $(wildcard image-build/src/os/*.rs)
	$(SUDO) $(TARGET)/debug/ferrite-image os --out $(OS) --compress zstd

# The benchmark's image: 2.5 GiB with 1 GiB of data.
$(TARGET)/lab/bench.raw.json: image-build/src/os.rs $(wildcard image-build/src/os/*.rs)
	$(SUDO) $(TARGET)/debug/ferrite-image os --out $(TARGET)/lab/bench.raw --size 2500MiB --data 1GiB \
		--compress zstd

# The same with a Kubernetes node in it: with the tests' kubeadm and kubelet, or with somebody's.
NODE_PARTS := image-build/src/os.rs $(wildcard image-build/src/os/*.rs)
node: build node-double
	@$(MAKE) --no-print-directory $(TARGET)/lab/node-double.raw.json
$(TARGET)/lab/node-double.raw.json: $(TARGET)/node-double $(NODE_PARTS)
	$(SUDO) $(TARGET)/debug/ferrite-image os --out $(TARGET)/lab/node-double.raw --compress zstd \
		--kubeadm $(TARGET)/node-double --kubelet $(TARGET)/node-double
kube-programs: build
	@$(TARGET)/debug/ferrite-lab kube-programs $(NODE_ONLY)
kube-node: kube-programs
	@$(MAKE) --no-print-directory $(TARGET)/lab/node-kube.raw.json
$(TARGET)/lab/node-kube.raw.json: $(FERRITE_KUBE_BIN)/kubeadm $(FERRITE_KUBE_BIN)/kubelet $(NODE_PARTS)
	$(SUDO) $(TARGET)/debug/ferrite-image os --out $(TARGET)/lab/node-kube.raw --compress zstd \
		--kubeadm $(FERRITE_KUBE_BIN)/kubeadm --kubelet $(FERRITE_KUBE_BIN)/kubelet

sudo:
	@test "$$(id -u)" = 0 || { echo "Ferrite asks for root once: to install Debian packages, to build a \
	disk image with its own files' owners, and to make the lab's network namespace."; sudo -v; }

deps: sudo
	@missing=$$(for p in $(PACKAGES); do dpkg-query -W -f '$${Status}' $$p 2>/dev/null \
		| grep -q 'install ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then echo "installing:" $$missing; \
		$(SUDO) apt-get update -q >/dev/null && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; fi

clean:
	$(CARGO) clean
