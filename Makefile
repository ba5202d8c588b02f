# make setup | demo | test | validation | study | lint | clean
# Another interpreter: make setup PYTHON=python3.12. Only some tests: make test TESTS=tests/patient/test_hips.py
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.spinefit-setup
APT    := build-essential python3-dev python3-venv libgl1 libopengl0 libegl1
TESTS  ?=

.PHONY: setup demo test lint clean validation study test-patient test-others test-some
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): pyproject.toml scripts/constraints.txt
	@PYTHON='$(PYTHON)' VENV='$(VENV)' APT='$(APT)' bash scripts/setup.sh
	@touch $@

demo: setup
	@$(BIN)/python scripts/demo.py

# The check against closed forms, NAFEMS benchmarks, contact, the published L2 and L4-L5 (needs SPINEFIT_DATA): some five minutes.
validation: setup
	@$(BIN)/python scripts/validation.py

# Four objective sets on five patients, three starts each, and their comparison (needs SPINEFIT_DATA): two and a half hours, goes on where it was.
study: setup
	@$(BIN)/python scripts/study.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The tests of engine/patient use one core and are, with some others, half of the time: both halves at once.
FIRST := tests/patient tests/contracts tests/report tests/surface
test: lint
	@$(MAKE) --no-print-directory -j2 -k --output-sync=target $(if $(TESTS),test-some,test-patient test-others)

test-some:
	$(BIN)/python -m pytest $(TESTS)

test-patient:
	$(BIN)/python -m pytest -o cache_dir=.pytest_cache/patient $(FIRST)

test-others:
	$(BIN)/python -m pytest tests $(FIRST:%=--ignore=%)

clean:
	rm -rf $(VENV) build *.egg-info .cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find engine fem objectives scripts tests conf -name __pycache__ -type d -prune -exec rm -rf {} +
