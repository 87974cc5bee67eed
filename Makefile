PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest

SEEDS ?= 0:100000
TABLE ?= /dev/null
PODS ?=
SOAK ?=
POWER ?=

.PHONY: test unit e2e crash-matrix simulate soak power-matrix audit-cost failpoints lint demo image tools api install

test: unit e2e     ## everything; as root on Debian 12 or newer

unit: install      ## no root needed: unit tests, simulation, linters, types, import contracts, generated code
	$(PYTEST) tests/unit

e2e: install tools ## real shims, engines and CNI plugins, in namespaces that end with the run; nodes with systemd in user-mode Linux
	$(PYTEST) tests/e2e

crash-matrix: install tools ## harm at every point of every verb, with three generations of shims: about an hour; writes TABLE=FILE
	ORLOP_MATRIX_SLICE=all ORLOP_MATRIX_TABLE=$(abspath $(TABLE)) tests/e2e/enter $(PYTEST) tests/e2e/matrix

simulate: install  ## random schedules on simulated nodes, from SEEDS=FROM:COUNT, on all cores; SEEDS=N shows one
	$(PYTHON) -m tests.unit.simulation $(SEEDS)

soak: install tools ## PODS pods come and go while what works for them is killed; more in SOAK, as '--shim 1.7 --engine crun --seed 2'
	$(PYTHON) -m tests.soak --pods $(or $(PODS),1000) $(SOAK)

power-matrix: install tools ## a node in user-mode Linux loses its power at every failpoint of every verb; part of it by POWER='--verb PullImage'
	$(PYTHON) -m tests.uml.power $(POWER)

audit-cost: install ## what the daemon's audit costs in CPU time with PODS=250 real pods; fails above 1 % of a core at one a minute
	$(PYTHON) -m tests.audit_cost $(or $(PODS),250)

failpoints: install ## the names of all failpoints, from the source
	$(PYTHON) -m tests.unit.simulation.failures

lint: install
	$(PYTEST) tests/unit/test_linters.py

demo: install      ## the main job end to end, shown step by step
	$(PYTHON) -m tests.demo

image: install     ## the container image of `orlop watch`, as build/orlop-watch-VERSION.tar, without a container engine
	$(PYTHON) -m deploy.image

tools: install     ## fetches the shims and engines of e2e and prints their versions
	$(PYTHON) -m tests.e2e.toolbox

api:               ## regenerates the modules of all .proto files
	$(PYTHON) -m grpc_tools.protoc -I. -I$$($(PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))') \
		--python_out=. --pyi_out=. $$(find agent/api cri/api -name '*.proto')

install:
	@.ci/install
