# Every target sets up what it needs in .venv, on a fresh clone.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO ?= skyclass-demo
EDITABLE := --config-settings editable_mode=compat --editable  # or a folder above, called skyclass too, hides the package
SCHEMA := $(BIN)/check-jsonschema --quiet --builtin-schema
TEST_WORKERS ?= 3  # most tests wait for processes that they start

.PHONY: demo test lint lint-project docs examples wheel bench rivals scale paper chaos fuzz mutants slurm clean

$(READY): pyproject.toml constraints.txt
	@echo "Installing skyclass into $(VENV): once, some minutes, about 2 GB."
	@echo "  1 of 3: a virtual environment with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)
	@echo "  2 of 3: PyTorch, the largest download"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	@echo "  3 of 3: skyclass, Dask, astropy and the tools of the tests"
	@$(BIN)/python -m pip install --quiet --constraint constraints.txt $(EDITABLE) '.[dev]'
	@echo "Installed. Later calls start at once."
	@touch $@

demo: $(READY)
	$(BIN)/skyclass demo $(DEMO)

test: $(READY) lint docs
	@echo "The examples in the docstrings."
	$(BIN)/python -m pytest -q --doctest-modules skyclass
	@echo "The test suite; each dot is a passed test."
	$(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile -m "not slow"

lint: $(READY) lint-project
	@echo "Style, types and the import directions of the packages."
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The workflow, the issue forms, the citation and the hooks against their schemas; the workflow for unsafe steps too.
lint-project: $(READY)
	@echo "Workflow and metadata files."
	@$(BIN)/zizmor --offline --quiet .github
	@$(SCHEMA) vendor.github-workflows .github/workflows/ci.yml
	@$(SCHEMA) vendor.github-issue-forms .github/ISSUE_TEMPLATE/bug.yml .github/ISSUE_TEMPLATE/docs.yml \
		.github/ISSUE_TEMPLATE/feature.yml
	@$(SCHEMA) vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	@$(SCHEMA) vendor.citation-file-format CITATION.cff
	@$(BIN)/pre-commit validate-config

# docs/_build/html; the notebook is executed, and a warning is an error.
docs: $(READY)
	@echo "The documentation, into docs/_build/html."
	$(BIN)/python -m sphinx -q -E -a -W --keep-going -b html docs docs/_build/html

# What the pages and README.md show: output of the commands, tables from the code, figures. FIELDS, a folder with images of
# the fields 2010H and 2010ai, repeats the examples on real pixels too.
examples: $(READY)
	$(BIN)/python -m docs.make_examples --demo $(if $(FIELDS),--fields $(FIELDS))
	$(BIN)/python -m docs.make_tables
	$(BIN)/python -m docs.make_figures

# dist/skyclass-*.whl, and the same wheel run in a folder outside the checkout.
wheel: $(READY)
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	$(BIN)/python -m pytest -q tests/test_wheel.py

bench: $(READY)
	$(BIN)/python -m benchmarks

# Beside astropy, numpy, Cutana, Dask and LSDB, in turns, in one run; then whether any ratio fell.
rivals: $(READY)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(EDITABLE) '.[rivals]'
	$(BIN)/python -m benchmarks.rivals -o benchmarks/work/rivals.jsonl
	$(BIN)/python -m benchmarks.report benchmarks/work/rivals.jsonl --figure benchmarks/work/rivals.png
	$(BIN)/python -m benchmarks.gate benchmarks/work/rivals.jsonl

# The whole sky on 256 simulated GPUs: driver and scheduler are real, stages sleep.
scale: $(READY)
	$(BIN)/python -m benchmarks.scale --gpus 256 --full

# The paper's study on a simulated sky: hours; it resumes.
paper: $(READY)
	$(BIN)/python -m benchmarks.paper

# Faults injected into whole runs, the long ones too (root for a network and a disk of their own), and what was lost; and
# the other long tests. Workers start as for users.
chaos: $(READY)
	$(BIN)/python -m pytest tests -n 2 --dist loadfile --spawn -m "fault or slow" --ignore tests/engine/test_slurm.py \
		--fault-table benchmarks/results/chaos.md

# Damaged inputs of every kind, each in a fork: one message, a documented exit code, bounded time and memory.
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz --seed 1 --n 2000

# 200 small changes of images/, catalog/ and run/, each against the tests of its package that reach it.
mutants: $(READY)
	$(BIN)/python -m tests.mutants --seed 1 --n 200

# cluster/slurm on a real Slurm on this machine; installs it (Debian, root).
slurm: $(READY)
	command -v slurmctld > /dev/null || (apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge)
	$(BIN)/python -m pytest -m slow tests/engine/test_slurm.py

clean:
	rm -rf $(VENV) $(DEMO) build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
