PYTHON ?= python3
BIN := .venv/bin
OLDEST := .venv-oldest
# Test processes, each with one thread: on small tensors threads cost more than they bring.
WORKERS ?= 2

.PHONY: demo test test-slow test-oldest bench gpu docs lint install

demo: install
	$(BIN)/ldm demo

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow and not gpu" -n $(WORKERS) --dist loadfile

test-slow: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[browser,notebook,sweep]"
	OMP_NUM_THREADS=1 $(BIN)/pytest -m slow
	OMP_NUM_THREADS=1 LDM_GPU=cpu $(BIN)/pytest -m gpu tests/gpu

# The quick suite on the lowest versions that pyproject.toml admits, in an environment of its own (7 GB on x86-64).
test-oldest: $(OLDEST)/installed
	OMP_NUM_THREADS=1 $(OLDEST)/bin/pytest -m "not slow and not gpu" -n $(WORKERS) --dist loadfile

bench: install
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/python -m benchmarks

# Tests and timings on a GPU, in $(PYTHON) if it has the packages, as in a container, else in .venv. Installs nothing and
# needs no network. Options as GPU="tests=60 table=0".
NEEDED := import importlib.util as u; raise SystemExit(not all(map(u.find_spec, ("torch", "lightning", "hydra", "einops"))))
gpu:
	@python=$(PYTHON); $$python -c '$(NEEDED)' 2>/dev/null || python=$(BIN)/python; \
	$$python -c '$(NEEDED)' 2>/dev/null || { \
		echo "make gpu: neither $(PYTHON) nor $(BIN)/python has torch, lightning, hydra and einops. Name an interpreter" \
			"that has, make gpu PYTHON=python, or make .venv by: make install"; exit 1; }; \
	HF_HUB_OFFLINE=1 $$python -m benchmarks.gpu $(GPU)

# The documentation as a site in site/; fails on a broken link. Search needs a server: .venv/bin/mkdocs serve
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

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
