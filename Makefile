# Each target is complete on a fresh machine: it makes the virtual environment it needs.
VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# Resolves and unpacks in a fifth of pip's time, and does not read pip's settings.
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python -c constraints.txt \
	$(if $(PIP_FIND_LINKS),--find-links $(PIP_FIND_LINKS))
# Idle OpenMP threads that spin make two busy processes ten times slower than two quiet ones.
export OMP_WAIT_POLICY = passive
# Where this is set, every process compiles torch and transformers again: 17 s.
export PYTHONDONTWRITEBYTECODE =

.PHONY: demo test test-bench lint bench docs clean

demo: $(READY)
	$(BIN)/regraft demo -o demo-out --overwrite

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not bench"

test-bench: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m bench

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(READY)
	$(BIN)/python benchmarks/extract.py
	$(BIN)/python benchmarks/apply.py
	$(BIN)/python benchmarks/config_roundtrip.py

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) uv
	$(UV) -e '.[dev]' || $(PIP) -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) demo-out bench-out site
