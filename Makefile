# make setup | demo | test | lint | clean
# Another interpreter: make setup PYTHON=python3.12
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.spinefit-setup
APT    := build-essential python3-dev python3-venv libgl1 libopengl0 libegl1
TESTS  ?= tests

.PHONY: setup demo test lint clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml scripts/constraints.txt
	@PYTHON='$(PYTHON)' VENV='$(VENV)' APT='$(APT)' bash scripts/setup.sh
	@touch $@

demo: setup
	@$(BIN)/python scripts/demo.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest $(TESTS)

clean:
	rm -rf $(VENV) build *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find engine fem objectives scripts tests conf -name __pycache__ -type d -prune -exec rm -rf {} +
