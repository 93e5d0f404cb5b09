PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest
# Test processes, each with one thread: on small tensors threads cost more than they bring.
WORKERS ?= 2

.PHONY: demo test test-slow test-oldest bench lint install

demo: install
	$(BIN)/python -m ldm.demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n $(WORKERS) --dist loadfile

test-slow: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[browser,notebook,sweep]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow

# The quick suite on the lowest versions that pyproject.toml admits, in an environment of its own (7 GB on x86-64).
test-oldest: $(OLDEST)/installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -m "not slow" -n $(WORKERS) --dist loadfile

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

$(OLDEST)/installed: pyproject.toml tests/lowest.py
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python tests/lowest.py > $(OLDEST)/constraints.txt
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check -c $(OLDEST)/constraints.txt -e ".[dev]"
	touch $@
