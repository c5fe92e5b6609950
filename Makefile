# Everything a person runs here. The two set-up commands are `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/
MINOR := $(shell $(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2])')

# Real images for the tests and benchmarks, where they lie beside the checkout.
ifneq ($(wildcard ../shared/data),)
export BELTLINE_DATA ?= $(abspath ../shared/data)
endif

.PHONY: help demo demo-scan test check bench bench-methods bench-compile bench-station bench-bridge bench-calibration bench-scans bench-peers soak constraints clean system
.DEFAULT_GOAL := help

help: ## show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 18

demo: $(VENV)/installed ## compile a bundle from photographs and run 300 parts over the simulated belt
	$(RUN)python -m compile.demo out/demo

demo-scan: $(VENV)/installed ## the same with height scans: compile from them and run 150 parts over the simulated belt
	$(RUN)python -m compile.demo out/demo-scan --scans

test: check ## what CI runs: static checks, then every test
	OMP_NUM_THREADS=1 $(RUN)python -m pytest -n 2 --dist loadfile

check: $(VENV)/installed ## formatting, lint, types, import rules
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)lint-imports

bench: ## every benchmark, also after one missed its budget; tables go to benchmarks/results/
	$(MAKE) --keep-going bench-methods bench-compile bench-station bench-bridge bench-calibration bench-scans

bench-methods: $(VENV)/installed ## every method side by side on the labelled data sets of BELTLINE_DATA
	$(RUN)python -m benchmarks.methods

bench-compile: out/demo/surface.bundle ## speed, growth, compile time; accuracy and parity on real data
	missed=0; for table in speed compile_time accuracy; do $(RUN)python -m benchmarks.$$table || missed=1; done; exit $$missed

bench-station: out/demo/surface.bundle ## latency and overhead of the station on the simulated belt
	$(RUN)python -m benchmarks.station

bench-bridge: out/demo/surface.bundle ## the wires: codec, recovery of link and broker
	$(RUN)python -m benchmarks.bridge

bench-calibration: $(VENV)/installed ## coverage of thresholds and speed of the pure functions
	$(RUN)python -m benchmarks.calibration

bench-scans: $(VENV)/installed ## the front end for scans: time of each step on one core
	$(RUN)python -m benchmarks.scans

PEERS := .venv-peers/bin/
bench-peers: .venv-peers/installed out/demo/surface.bundle ## the student beside what anomalib exports, in an environment of its own
	$(PEERS)python -m benchmarks.peers

MINUTES ?= 60
soak: out/demo/surface.bundle ## the line for MINUTES=60: memory, outcomes, latency
	$(RUN)python -m benchmarks.soak --minutes $(MINUTES)

out/demo/surface.bundle:
	$(MAKE) demo

system:
	@.ci/system-packages

$(VENV)/installed: pyproject.toml constraints/$(MINOR).txt | system
	test -x $(RUN)python || $(PYTHON) -m venv $(VENV)
	$(RUN)pip install --quiet -c constraints/$(MINOR).txt -e '.[dev,page]'
	touch $@

.venv-peers/installed: benchmarks/peers/requirements.txt pyproject.toml | system
	test -x $(PEERS)python || $(PYTHON) -m venv .venv-peers
	$(PEERS)pip install --quiet -r $< -e '.[edge]'
	touch $@

constraints: ## resolve constraints/*.txt anew (needs uv)
	.ci/resolve-constraints

clean: ## remove the environment and everything built
	rm -rf $(VENV) .venv-peers build out dist *.egg-info
