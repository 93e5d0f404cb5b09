PYTHON ?= python3
BIN := .venv/bin
# Test processes, each with one thread: on small tensors threads cost more than they bring.
WORKERS ?= 2

.PHONY: demo test test-slow bench lint install

demo: install
	$(BIN)/python -m ldm.demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[browser,notebook,sweep]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/python -m benchmarks

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: .venv/installed

# Runs again only when pyproject.toml changes.
.venv/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	touch $@
