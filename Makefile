# make setup | demo | test | check | test-slow | test-gpu | test-root | test-images | parity | bench | bench-… | wheelhouse
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WHEELHOUSE ?=
PIP_FLAGS := $(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE),)
STAMP := $(VENV)/.ready
BUNDLES ?= runs/quickstart/bundle

.PHONY: setup demo test check test-slow test-gpu test-root wheelhouse schema clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || \
	  { echo "Python 3.11 or 3.12 is needed: make setup PYTHON=/path/to/python3.12"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	  { echo "Python's venv module is missing: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing (about 6 GB, a few minutes the first time) ..."
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt "setuptools>=77"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --no-build-isolation -c constraints.txt -e ".[dev]"
	$(BIN)/python -m pip check
	@touch $@

demo: setup
	$(BIN)/toolchain run quickstart --out runs/quickstart

test: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

test-slow: setup
	$(BIN)/python -m pytest -m slow

test-gpu: setup
	$(BIN)/python -m pytest -m gpu

test-root: setup
	$(BIN)/python -m pytest -m root

schema: setup
	$(BIN)/toolchain schema > docs/recipe.schema.json

# For a site without network: run where there is one, carry the folder over, then
#   make setup WHEELHOUSE=wheelhouse
wheelhouse: pyproject.toml constraints.txt
	$(PYTHON) -m venv build/wheelhouse-venv
	build/wheelhouse-venv/bin/python -m pip download --quiet --dest wheelhouse -c constraints.txt "setuptools>=77" ".[dev]"
	rm -f wheelhouse/toolchain-*

clean:
	rm -rf $(VENV) build dist wheelhouse runs .toolchain

# Some minutes: is this version as fast as the one of this kind of machine's record (benchmarks/results/own.*.json)? Where there is
# none, a first run keeps one below build/bench for the next. bench-own-record takes a new one, which wants a quiet machine.
.PHONY: bench bench-own-record
bench: setup
	mkdir -p build/bench
	$(BIN)/python benchmarks/table.py
	@missed= open=; run() { echo "$$*"; $(BIN)/python -m "$$@"; \
	  case $$? in 0) ;; 4) open="$$open $$1" ;; *) missed="$$missed $$1" ;; esac; }; \
	run benchmarks.bench.explain_cases --by-hand --out build/bench/explain.json; \
	run benchmarks.bench.harness_cost --out build/bench/harness_cost.json; \
	run benchmarks.bench.own --bundle $(firstword $(BUNDLES)); \
	if [ -d $(firstword $(BUNDLES)) ]; then run benchmarks.serve.overhead --bundle $(firstword $(BUNDLES)) --rounds 10 \
	    --out build/bench/serve_overhead.json; \
	else echo "the server is not measured: 'make demo' makes $(firstword $(BUNDLES))"; fi; \
	[ -z "$$missed" ] || { echo "missed:$$missed (a busy machine misses them too)"; exit 1; }; \
	[ -z "$$open" ] || { echo "cannot be told:$$open (on a quieter machine it can)"; exit 4; }

# What serving costs, into benchmarks/results: a quiet machine, and BUNDLES="one bundle"; LARGE: the bundle for saturation
# and for half an hour of load and faults, ResNet-50 in int8. Each part writes its record and says kept or missed; all run, also after one that missed, and go on
# where they were when started again. SERVE_PYTHON: the interpreter of both sides; a device's own (Debian's, built with
# profile-guided optimization: /usr/bin/python3.11) takes a fifth less than one that pyenv built without.
SERVE_PYTHON ?= $(BIN)/python
LARGE ?= $(firstword $(BUNDLES))
.PHONY: bench-serve
bench-serve: setup
	@export PYTHONPATH=$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))'); \
	missed=; run() { echo "$$*"; $(SERVE_PYTHON) -m "$$@" || missed="$$missed $$1"; }; \
	run benchmarks.serve.overhead --bundle $(firstword $(BUNDLES)); \
	run benchmarks.serve.saturation --bundle $(LARGE); \
	run benchmarks.serve.soak --bundle $(LARGE); \
	[ -z "$$missed" ] || { echo "missed:$$missed"; exit 1; }

bench-own-record: setup
	$(BIN)/python -m benchmarks.bench.own --write --bundle $(firstword $(BUNDLES))
	$(BIN)/python benchmarks/table.py

.PHONY: bench-kill bench-throughput bench-imagenet bench-ptq bench-ptq-transformer bench-activations bench-qat bench-transfer bench-cuda bench-resnet56 bench-table
bench-kill: setup
	$(BIN)/python benchmarks/kill/run.py

bench-throughput: setup
	$(BIN)/python benchmarks/throughput/run.py

bench-imagenet: setup
	$(BIN)/python benchmarks/imagenet_sample/run.py

bench-ptq: setup
	$(BIN)/python -m benchmarks.ptq.run

bench-ptq-transformer: setup
	$(BIN)/python -m benchmarks.ptq.transformer; code=$$?; $(BIN)/python benchmarks/table.py; exit $$code

# Both train for many minutes, go on where they were, and want a quiet machine for their times.
bench-activations: setup
	$(BIN)/python -m benchmarks.activations.run
	$(BIN)/python benchmarks/table.py

bench-qat: setup
	$(BIN)/python -m benchmarks.qat.run
	$(BIN)/python benchmarks/table.py

bench-transfer: setup
	$(BIN)/python -m benchmarks.transfer.run
	$(BIN)/python -m benchmarks.transfer.table
	$(BIN)/python -m benchmarks.transfer.cards
	$(BIN)/python -m benchmarks.transfer.int8

bench-cuda: setup
	$(BIN)/python -m benchmarks.cuda.run
	$(BIN)/python benchmarks/throughput/run.py --device cuda

# The whole table wants a GPU for an hour; without one: RESNET56="--epochs 1 2 4 --per-class 500 --seeds 0".
RESNET56 ?= --device cuda
bench-resnet56: setup
	$(BIN)/python -m benchmarks.resnet56.run $(RESNET56); code=$$?; $(BIN)/python benchmarks/table.py; exit $$code

bench-table: setup
	$(BIN)/python benchmarks/table.py

# Wants 'make base boot device-wheels' and a bundle; boots emulated machines for some minutes, then starts containers.
.PHONY: bench-boot
bench-boot: setup
	@missed=; run() { echo "$$*"; $(BIN)/python -m "$$@" || missed="$$missed $$1"; }; \
	run benchmarks.boot.run; run benchmarks.boot.container; \
	$(BIN)/python benchmarks/table.py; [ -z "$$missed" ] || { echo "missed:$$missed"; exit 1; }

.PHONY: bench-fidelity bench-harness bench-explain
bench-fidelity: setup
	$(BIN)/python -m benchmarks.bench.fidelity

bench-harness: setup
	$(BIN)/python -m benchmarks.bench.harness_cost

bench-explain: setup
	$(BIN)/python -m benchmarks.bench.explain_cases

.PHONY: bench-aa bench-ab bench-accuracy bench-saved
bench-aa: setup
	$(BIN)/python benchmarks/compare/aa.py

bench-ab: setup
	$(BIN)/python benchmarks/compare/ab.py --confirm 600

bench-accuracy: setup
	$(BIN)/python benchmarks/compare/accuracy.py

bench-saved: setup
	$(BIN)/python benchmarks/compare/saved.py

# What packages are made from: wheels for devices, and a root file system (Debian 12, Python 3.11) for images.
# GRPC=1 fetches grpcio as well, which packages then carry.
DEVICE ?= build/device
EPOCH ?= 1700000000
PLATFORMS_amd64 := manylinux_2_28_x86_64 manylinux_2_27_x86_64 manylinux2014_x86_64
PLATFORMS_arm64 := manylinux_2_28_aarch64 manylinux_2_27_aarch64 manylinux2014_aarch64
.PHONY: runtime-wheel device-wheels base parity test-images
runtime-wheel: setup
	$(BIN)/python -m toolchain.package.distribution dist

device-wheels: setup
	for arch in amd64 arm64; do \
	  $(BIN)/python -m pip download --quiet --no-deps --only-binary=:all: --python-version 3.11 --implementation cp \
	    $$(for p in $$(test $$arch = amd64 && echo $(PLATFORMS_amd64) || echo $(PLATFORMS_arm64)); do echo --platform $$p; done) \
	    --dest $(DEVICE)/wheels-$$arch -r docker/device.txt $(if $(GRPC),-r docker/grpc.txt) || exit 1; \
	done

base: $(DEVICE)/base-amd64.tar $(DEVICE)/base-arm64.tar
$(DEVICE)/base-%.tar:
	@command -v mmdebstrap >/dev/null || { echo "mmdebstrap is missing: apt-get install mmdebstrap"; exit 1; }
	mkdir -p $(DEVICE)
	SOURCE_DATE_EPOCH=$(EPOCH) mmdebstrap --quiet --architectures=$* --variant=extract \
	  --include=python3-minimal,libpython3.11-stdlib,libstdc++6 --dpkgopt='path-exclude=/usr/share/man/*' \
	  --dpkgopt='path-exclude=/usr/share/locale/*' --dpkgopt='path-exclude=/usr/share/doc/*' \
	  --dpkgopt='path-include=/usr/share/doc/*/copyright' bookworm $@
	sha256sum $@

# The golden pictures of BUNDLES on emulated AVX2-only x86 and arm64 (qemu-user 10): minutes.
parity: setup base device-wheels
	for bundle in $(BUNDLES); do for isa in x86-avx2 arm64; do \
	  arch=$$(test $$isa = arm64 && echo arm64 || echo amd64); base=$(DEVICE)/base-$$arch.tar; \
	  $(BIN)/python -m toolchain.package.emulate $$bundle --isa $$isa --wheels $(DEVICE)/wheels-$$arch \
	    --base $$base --base-sha256 $$(sha256sum $$base | cut -d' ' -f1) || exit $$?; \
	done; done

# For bootable images: Debian's kernel for virtual machines (KERNEL=linux-image for real ones), systemd's EFI stub, a static
# busybox.
KERNEL ?= linux-image-cloud
.PHONY: boot
boot: $(DEVICE)/boot-amd64.tar $(DEVICE)/boot-arm64.tar
$(DEVICE)/boot-%.tar:
	@command -v mmdebstrap >/dev/null || { echo "mmdebstrap is missing: apt-get install mmdebstrap"; exit 1; }
	mkdir -p $(DEVICE)
	SOURCE_DATE_EPOCH=$(EPOCH) mmdebstrap --quiet --architectures=$* --variant=extract \
	  --include=$(KERNEL)-$*,systemd-boot-efi,busybox-static --dpkgopt='path-exclude=/usr/share/*' \
	  --dpkgopt='path-include=/usr/share/doc/*/copyright' bookworm $@
	sha256sum $@

# A Debian with systemd, in which the .deb is installed and started.
$(DEVICE)/system-amd64.tar:
	mkdir -p $(DEVICE)
	SOURCE_DATE_EPOCH=$(EPOCH) mmdebstrap --quiet --architectures=amd64 --variant=minbase \
	  --include=systemd,systemd-sysv,dbus,python3,libstdc++6 bookworm $@

# Builds and runs each target; wants root, podman, runc, buildah, skopeo, systemd-container, qemu-user, rauc,
# qemu-system, ovmf, qemu-efi-aarch64, mender-artifact: what is missing is skipped, and said so.
test-images: setup base boot device-wheels $(DEVICE)/system-amd64.tar
	TOOLCHAIN_DEVICE=$(abspath $(DEVICE)) $(BIN)/python -m pytest -m root tests/test_package_images.py

# Rivals side by side (docs/peers.md): an environment for each (16 GB below build/peers with the inputs), their files, scores, and times,
# which want a quiet machine. Goes on where it was; `make peers-times` repeats the times only.
.PHONY: peers peers-times
peers: setup
	$(BIN)/python -m benchmarks.peers.install --python $(BIN)/python
	$(BIN)/python -m benchmarks.peers.cases
	$(BIN)/python -m benchmarks.peers.cells
	$(BIN)/python -m benchmarks.peers.scoring
	$(MAKE) peers-times

peers-times: setup
	$(BIN)/python -m benchmarks.peers.timing
	$(BIN)/python benchmarks/table.py
