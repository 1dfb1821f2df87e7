# Every target sets up what it needs: on a fresh machine `make demo` and `make test` are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# keeps pip from fetching what this project does not ask for
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: demo test test-slow compat check fix bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $(READY)

demo: $(READY)  ## quantize the bundled model, measure it, write a report
	$(BIN)/llmopt run demo -o build/demo

test: $(READY)  ## the fast suite
	$(BIN)/python -m pytest -q

test-slow: $(READY)  ## minutes of CPU: kills, memory growth, corrupted artifacts
	$(BIN)/python -m pytest -q -m slow

compat: $(READY)  ## our files in foreign loaders, each in an environment of its own
	$(BIN)/python scripts/environment.py compat peer-gptqmodel
	$(BIN)/python -m pytest -q -m compat

check: $(READY)  ## lint, types, import direction
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_architecture.py

fix: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## figures against peers; each script says what it needs
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/gptq_kernel.py
	$(BIN)/python benchmarks/int8_linear.py
	$(BIN)/python benchmarks/memory/peak_memory.py

clean:
	rm -rf $(VENV) build dist
