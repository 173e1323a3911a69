# `make demo` and `make test` need python3 (3.10 or newer), make and git; they set up .venv themselves.

PYTHON ?= python3
# Another build of torch: make demo WHEEL_INDEX=<address that PyTorch's install page shows for your system>
WHEEL_INDEX ?=
DATA_DIR ?=

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INDEX := $(if $(WHEEL_INDEX),--extra-index-url $(WHEEL_INDEX))

.PHONY: demo test lint types check coverage bench clean

demo: $(STAMP)
	$(BIN)/vaeprune shrink models/tiles-dense --data tiles --out out/tiles-dense --force

test: $(STAMP)
	$(if $(DATA_DIR),VAEPRUNE_DATA_DIR=$(DATA_DIR)) $(BIN)/python -m pytest

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP)
	$(BIN)/mypy

check: lint types test

coverage: $(STAMP)
	$(if $(DATA_DIR),VAEPRUNE_DATA_DIR=$(DATA_DIR)) $(BIN)/python -m coverage run --parallel-mode -m pytest -q
	$(BIN)/python -m coverage combine --quiet
	$(BIN)/python -m coverage report --skip-covered --show-missing

bench: $(STAMP)
	$(if $(DATA_DIR),VAEPRUNE_DATA_DIR=$(DATA_DIR)) $(BIN)/python -m benchmarks

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "vaeprune needs Python 3.10 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(INDEX) --constraint constraints.txt --editable '.[dev,foreign,serve]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) out build *.egg-info
