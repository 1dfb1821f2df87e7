# Every target sets up what it needs: on a fresh machine `make demo` and `make test` are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# keeps pip from fetching what this project does not ask for
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

# compiling llama.cpp takes some minutes; its image models are not needed
LLAMA := $(VENV)/.llama
BUILD_LLAMA := CMAKE_ARGS="-DLLAVA_BUILD=OFF" CMAKE_BUILD_PARALLEL_LEVEL=$(shell nproc 2>/dev/null || echo 2)

# parts of the slow suite, each of less than a quarter of an hour on two cores
PART := kills presets gate docs tokenizers families

# a worker a core, and a thread a worker
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q

.PHONY: demo test test-slow compat check fix bench clean

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt -e ".[dev]"
	touch $(READY)

$(LLAMA): $(READY)
	$(BUILD_LLAMA) $(PIP) install -c constraints.txt -e ".[dev,llamacpp]"
	touch $(LLAMA)

demo: $(READY)  ## quantize the bundled model, measure it, write a report
	$(BIN)/llmopt run demo -o build/demo

test: $(LLAMA)  ## the fast suite
	$(TESTS) -n auto --dist loadfile

test-slow: $(LLAMA)  ## minutes of CPU, one part after the other; PART=kills: one of them alone
	@failed=; for part in $(PART); do \
	  echo "test-slow PART=$$part"; \
	  $(TESTS) -n auto -m "slow(part='$$part')" || failed="$$failed $$part"; \
	done; test -z "$$failed" || { echo "failed:$$failed"; exit 1; }

compat: $(LLAMA)  ## our files in foreign loaders, each in an environment of its own
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

bench: $(LLAMA)  ## figures against peers; each script says what it needs
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/gptq_kernel.py
	$(BIN)/python benchmarks/int8_linear.py
	$(BIN)/python benchmarks/gguf_encode.py
	$(BIN)/python benchmarks/memory/peak_memory.py

clean:
	rm -rf $(VENV) build dist
