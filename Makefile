# Every target installs what it needs into .venv first; `make` alone lists them.
#
# PYTHON  the interpreter that .venv is made from, >= 3.11
# TORCH   what pip is asked for as torch, within constraints.txt. The default takes the build that the
#         package index offers; another one by local version, wheel or URL: TORCH=torch==2.13.0+cu130
# ARGS    more arguments of the program that a target runs, e.g. ARGS="small --name first"
PYTHON ?= python3
TORCH ?= torch
ARGS ?=

BIN := .venv/bin
STAMP := .venv/installed

.PHONY: help install pretrain test test-cluster lint format clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' Makefile

install: $(STAMP) ## make .venv and install everything into it; a second call does nothing

# Variables, not options: they also pin the build tools where pip builds in isolation (DeepSpeed comes
# as source). Older pips read the first variable there, newer ones the second.
$(STAMP): export PIP_CONSTRAINT := constraints.txt
$(STAMP): export PIP_BUILD_CONSTRAINT := constraints.txt
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "smt-ray needs Python >= 3.11, \
	this is %d.%d; name another: make install PYTHON=python3.11" % sys.version_info[:2])'
	@echo "Making .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv
	@echo "Installing smt-ray and what it needs into .venv (a few minutes the first time)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' -e '.[test,dev]'
	@touch $(STAMP)
	@echo "Installed"

pretrain: $(STAMP) ## train an RNN: the whole chain on the embedded default data
	@$(BIN)/python jobs/pretrain_lm.py $(ARGS)

# Status 5: ARGS names no test of this kind; none of either kind is an error.
test: $(STAMP) ## run the test suite without the slow cluster tests
	@none=0; \
	$(BIN)/python -m pytest -m "not (ray or cluster or gpu)" -n auto --dist loadfile $(ARGS) \
		|| { [ $$? = 5 ] && none=1; } || exit 1; \
	$(BIN)/python -m pytest -m "ray and not (cluster or gpu)" $(ARGS) \
		|| { [ $$? = 5 ] && [ $$none = 0 ]; }

test-cluster: $(STAMP) ## run the slow tests: jobs on a Ray head of their own
	@$(BIN)/python -m pytest -m "cluster and not gpu" $(ARGS)

lint: $(STAMP) ## check style and types
	@echo "ruff check" && $(BIN)/ruff check
	@echo "ruff format --check" && $(BIN)/ruff format --check
	@echo "mypy" && $(BIN)/mypy

format: $(STAMP) ## rewrite the source in the project's format
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

clean: ## remove .venv and all caches; runs/ stays
	rm -rf .venv build *.egg-info .pytest_cache .mypy_cache .ruff_cache
