# Everything a developer or a visitor types. `make` alone explains itself.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export MED_ASSETS_HOME ?= .med_assets
export DAGSTER_HOME ?= $(abspath $(MED_ASSETS_HOME))/dagster
export DAGSTER_DISABLE_TELEMETRY := yes
export PATH := $(abspath $(BIN)):$(PATH)

# Tests make many small files and wait until each is on the disk; in memory, where there are 8 GiB for them, nobody waits.
IN_MEMORY := $(shell test -w /dev/shm && test "$$(df --output=avail -k /dev/shm | tail -1)" -gt 8388608 && echo /dev/shm)
test test-fast drills chaos: export TMPDIR := $(or $(TMPDIR),$(IN_MEMORY),/tmp)

.PHONY: help setup demo openkbp ui test test-fast drills fuzz kills chaos lint format docs bench clean

help:  ## What can be made here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS=$$'\t' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: $(STAMP)  ## Make .venv and install everything (a few minutes the first time, nothing afterwards)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"expected Python 3.11 to 3.13, got {v[0]}.{v[1]}; run make with PYTHON=/path/to/python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	sh deploy/install.sh $(BIN)/python dev
	touch $@

demo: export MED_ASSETS_PSEUDONYM_KEY := demo-key-for-synthetic-data-only
demo: export MED_ASSETS_PURPOSE := demo
demo: export MED_ASSETS_PROFILE := demo
demo: export MED_ASSETS_SETTLE_S := 5
demo: setup  ## Make synthetic cases and materialize the whole graph of PROGRAMS (all) on the CPU (about 6 minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m assets.demo $(PROGRAMS)

openkbp: export MED_ASSETS_HOME := $(or $(OPENKBP_HOME),.med_assets_openkbp)
openkbp: export MED_ASSETS_PSEUDONYM_KEY ?= key-for-the-published-openkbp-patients
# This key stands here for everybody to read, as the patients are published; such keys are for homes without other patients.
openkbp: export MED_ASSETS_PURPOSE ?= demo
openkbp: export MED_ASSETS_PROFILE ?= full
openkbp: export MED_ASSETS_RT_DOSE_SITE := head_neck
openkbp: export MED_ASSETS_RT_DOSE_SPLIT_POLICY := given
openkbp: export MED_ASSETS_SETTLE_S := 0
openkbp: setup  ## OpenKBP: import SRC=folder (all, or PATIENTS="pt_1 ..."), then the whole graph for EXPERIMENTS (those of the record run)
	@test -d "$(SRC)" || { echo 'expected SRC=folder with train-pats and validation-pats; see docs/openkbp.md'; exit 2; }
	$(BIN)/med-assets import openkbp "$(SRC)" "$$MED_ASSETS_HOME/landing/rt_dose" $(if $(PATIENTS),--patients $(PATIENTS))
	DAGSTER_HOME=$(abspath $(or $(OPENKBP_HOME),.med_assets_openkbp))/dagster $(BIN)/python -m assets.run rt_dose $(or $(EXPERIMENTS),mean_dose baseline residual residual_beams residual_beams_dvh cascade) $(OVERRIDES)

# The demo leaves its settings in demo.env of its home, so that only a home made by the demo is opened with the demo's key.
ui: setup  ## Open Dagster on http://localhost:3000 with its sensors and schedules running, and the review page on http://localhost:3001
	umask 077; mkdir -p "$$DAGSTER_HOME" && cp -n resources/dagster.yaml "$$DAGSTER_HOME/"
	if test -f "$$MED_ASSETS_HOME/demo.env"; then source "$$MED_ASSETS_HOME/demo.env"; fi; umask 077; $(BIN)/python -m resources.ui

test: setup  ## The tests of every feature, with style and import contracts among them (about 10 minutes on two cores)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist worksteal -m 'not drill'

test-fast: setup  ## The tests that are marked neither slow nor drill
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not slow and not drill'

drills: setup  ## Kills at random (also of a DICOM receiver), trainings of two processes, a real daemon, UMAP, a real Slurm and SeaweedFS where they are installed, and the fuzzer with N (500) mutated files
	export OMP_NUM_THREADS=1; $(BIN)/python -m tests.fuzz -n $(or $(N),500) --seed $(or $(SEED),0) & fuzz=$$!; code=0; \
	$(BIN)/python -m pytest -n 5 --dist loadfile --no-loadscope-reorder -m drill || code=$$?; wait $$fuzz || code=$$?; exit $$code

fuzz: setup  ## Take in N (1000) mutated files of all programs and importers and print what came of them; SEED (0) repeats a run
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz -n $(or $(N),1000) --seed $(or $(SEED),0)

kills: setup  ## Kill intake N (100) times at random moments and compare with an undisturbed one; SEED (0) repeats a run
	KILLS=$(or $(N),100) SEED=$(or $(SEED),0) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/cases/test_kills.py

chaos: setup  ## Two machines (MACHINES) on one bucket with faults, killed at random in N (40) phases of work, compared with one undisturbed machine; SEED (0) repeats a run
	PHASES=$(or $(N),40) SEED=$(or $(SEED),0) MACHINES=$(or $(MACHINES),2) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/med_assets/site -m drill

lint: setup  ## Ruff, mypy and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## Rewrite the code in the project's style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup  ## Write docs/cli.md, docs/tables.md, the reasons of docs/intake.md and the figure of docs/architecture.md anew from the code
	$(BIN)/python -m med_assets.cli.reference docs/cli.md
	$(BIN)/python -m med_assets.intake.reasons docs/intake.md
	$(BIN)/python -m med_assets.cli.tables_page docs/tables.md
	$(BIN)/python -W ignore -m assets.figure docs/architecture.md

bench: setup  ## Run the benchmarks, or those named in BENCH, print their tables and keep them in bench/RESULTS.md (about an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m bench.results $(or $(BENCH),definitions_load intake workers preparation residual_scan incremental scale run_start rescan ticks idle latency serving s3_transfer tables patch_loader training_overhead vista3d_step oct_encoder)

clean:  ## Remove caches and build files (data in MED_ASSETS_HOME stays)
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
