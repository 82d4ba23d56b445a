# Copyright (c) 2026 The ebpf.conntrack authors
# GNU General Public License v3.0 or later (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
#
# make lab      set up what is missing, build the lab, compile and attach the chain, print the flow table
# make test     set up what is missing, run every gate and every test
# make lint     the gates only
# make check    the loop of one change: ruff, mypy, file headers, layers and unit tests, in less than a minute
# make test-for FILE=...   the tests that cover a file, the nearest first; LIST=1 only names them, DEPTH=2 takes more
# make test-unit, test-integration, test-oracle, test-e2e, test-host, test-install   one suite of it
# make test-fleet HOSTS=20   all tests of fleets, on so many hosts (3 when not given), and test-vm; make test has time for a part of them
# make test-vm  the role on a host with another kernel, in a virtual machine; it installs qemu and fetches Debian's kernel
# make test-picture  the pictures of ct graph in a browser; it installs chromium and graphviz, so make test leaves it out
# make test-versions  the unit tests and a lab with other versions of ansible-core, Python and pyroute2; not in make test, because it installs each of them
# make test-molecule  the scenarios of extensions/molecule: both roles on a lab, by molecule; likewise
# make test-long   what takes longer than make test may: other kernels in virtual machines, 20 hosts, browsers, other versions,
#               the random suites in every form and in another order, faults at every system call, the tests by ansible-test's gates
# make docs     the modules', plugins' and roles' documentation as HTML, in build/docs/html
# make changelog   write CHANGELOG.rst from changelogs/fragments
# make fuzz     throw FRAMES (a million) mutated frames made from SEED at the chain; each must pass unchanged and be counted once
# make bench    measure; prints tables, writes build/bench.json
# make clean    take the lab down, leave nothing behind but the venv (distclean: nor that)

SHELL := /bin/bash
PYTHON ?= /usr/bin/python3
export PYTHON
SETUP := bash tests/tools/setup.sh
# From the directory of this file, so that its path may hold a space.
VENV := .venv/bin

RUN := $(VENV)/python tests/tools/run.py
SUITES := unit integration oracle e2e host install

HOSTS ?= 3
FRAMES ?= 1000000
SEED ?= 1
DEPTH ?= 1

.PHONY: help setup setup-dev lab test lint check test-for $(SUITES:%=test-%) test-fleet test-vm test-picture test-versions test-molecule test-long docs changelog fuzz bench clean distclean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^# make /make /p' Makefile

setup:
	@$(SETUP) run

setup-dev:
	@$(SETUP) dev

lab: setup
	@$(VENV)/ansible-playbook playbooks/lab.yml

test: setup-dev
	@$(RUN) all

lint: setup-dev
	@$(RUN) lint

check: setup-dev
	@$(VENV)/python tests/tools/check.py

test-for: setup-dev
	@$(VENV)/python tests/tools/tests_for.py $(if $(LIST),--list) --depth $(DEPTH) -- "$(FILE)"

$(SUITES:%=test-%): test-%: setup-dev
	@$(RUN) $*

test-fleet: export FLEET_HOSTS = $(HOSTS)
test-fleet:
	@$(SETUP) vm
	@$(RUN) fleet vm

test-vm:
	@$(SETUP) vm
	@$(RUN) vm

test-picture:
	@$(SETUP) picture
	@$(RUN) picture

# VERSIONS names some of what "versions.py --list" shows.
test-versions: setup-dev
	@$(VENV)/python tests/tools/versions.py $(VERSIONS)

test-molecule: setup-dev
	@$(SETUP) molecule
	@$(RUN) molecule

test-long:
	@$(SETUP) vm
	@$(SETUP) picture
	@$(SETUP) molecule
	@$(RUN) sanity units oracle-long e2e-long faults fleet vm picture molecule
	@$(VENV)/python tests/tools/versions.py

test-long: export FLEET_HOSTS = 20

docs: setup-dev
	@$(VENV)/python tests/tools/docs.py

changelog: setup-dev
	@$(VENV)/python tests/tools/changelog.py

fuzz: setup
	@$(VENV)/python tests/oracle/rig/fuzz.py --frames $(FRAMES) --seed $(SEED)

bench: setup-dev
	@$(VENV)/python tests/bench/run.py

clean:
	@if [ -x $(VENV)/ansible-playbook ]; then $(VENV)/ansible-playbook playbooks/clean.yml; fi
	@rm -rf build tests/output .pytest_cache .hypothesis .mypy_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +

distclean: clean
	@rm -rf .venv .ansible
