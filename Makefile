# SPDX-License-Identifier: Apache-2.0
# `make` alone prints the targets.

VENV ?= .venv
ARGS ?=
KERNEL ?=

python := $(VENV)/bin/python
sources := pyproject.toml setup.py build_ffi.py $(wildcard csrc/*)
extension := csrc/ask.c csrc/create.c csrc/signals.c csrc/spawn.c
launcher := $(filter-out $(extension),$(wildcard csrc/*.c))
warnings := -Wall -Wextra -Wshadow -Wvla -Werror
# As setup.py compiles the launcher; the rest of the C runs in the interpreter.
freestanding := -std=gnu11 -Os -ffreestanding -nostdlib -static -fno-pic -no-pie \
	-fno-stack-protector -fno-strict-aliasing -Wno-unused-command-line-argument $(warnings)
hosted := -std=gnu11 -O2 $(warnings)

# An ordinary user's may lack the directories of nft and its like.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin

.DEFAULT_GOAL := help
.PHONY: help demo test test-deps test-vm docs wheels test-wheels lint lint-python lint-c bench bench-exec bench-network clean

help: ## print this
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(VENV)/.demo ## install into VENV (.venv) and look at a container from the inside
	$(python) docs/demo.py

test: test-deps $(VENV)/.test ## run the tests here; ARGS="-k name" and the like go to pytest
	$(python) -m pytest tests/unit tests/system $(ARGS)
	@echo "Left out: the same system tests on Debian's kernels in a virtual machine, which take"
	@echo "minutes and need QEMU: make test-vm"

test-deps: ## install what the tests want from Debian, where that is allowed
	@.ci/test-deps

test-vm: $(VENV)/.test ## run the system tests in virtual machines; KERNEL=6.1, ARGS="--systemd"
	$(python) tests/vm/run.py $(KERNEL:%=--kernel %) $(ARGS)

docs: $(VENV)/.docs ## build the documentation's pages into build/docs
	$(python) -m sphinx --quiet --fail-on-warning --keep-going docs build/docs

wheels: $(VENV)/.wheels ## build the sdist and a wheel per platform into dist/, by ziglang
	$(python) .ci/build_wheels.py $(ARGS)

# In an environment of its own: nothing of this tree may be in the way of what is installed.
test-wheels: $(VENV)/.wheels ## build, look at and install the wheels, on every Python there is
	@.ci/test-deps wheels
	$(python) -m pytest --timeout 1500 tests/wheels $(ARGS)

lint: lint-python lint-c ## check format, types and warnings, with what is installed

lint-python: $(VENV)/.lint
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy container tests bench docs build_ffi.py .ci

lint-c:
	$(call where,clang-format) clang-format --dry-run -Werror csrc/*.[ch] bench/*.c tests/*/*.c
	$(call where,gcc) $(call compile,gcc)
	$(call where,clang) $(call compile,clang)
	$(call where,aarch64-linux-gnu-gcc) $(call compile,aarch64-linux-gnu-gcc)

where = @if ! command -v $(1) >/dev/null; then echo "left out: no $(1) here"; exit 0; fi; set -x;
compile = $(1) $(freestanding) -o /dev/null $(launcher) \
	&& $(1) $(hosted) -fsyntax-only $(extension) bench/filter.c bench/floor_a.c bench/floor_exec.c \
	bench/timer.c

bench: $(VENV)/.demo ## measure a start beside the floor and other programs, as root
	$(python) bench/run.py $(ARGS)

bench-exec: $(VENV)/.demo ## likewise a command in a running container
	$(python) bench/exec.py $(ARGS)

bench-network: $(VENV)/.demo ## likewise a network: interfaces, published ports, new flows
	$(python) bench/network.py $(ARGS)

clean: ## remove what the targets made
	rm -rf $(VENV) build dist *.egg-info container/*.so .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Virtual environments with extras of pyproject.toml; Python sources are used where they are.
$(VENV)/.demo: extras :=
$(VENV)/.test: extras := test
$(VENV)/.lint: extras := lint,test
$(VENV)/.docs: extras := docs
$(VENV)/.wheels: extras := wheels,test
$(VENV)/.demo $(VENV)/.test $(VENV)/.docs $(VENV)/.lint $(VENV)/.wheels: $(sources)
	.ci/make-venv $(VENV) $(extras)
	@touch $@
