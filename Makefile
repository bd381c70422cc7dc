# make quickstart   one image and one sentence -> a 4D scene, on this machine's CPU or GPU
# make test         lint, then every test, with coverage
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PRIORS := load/toy-priors

IMAGE ?= load/toy-panda/_rgba.png
PROMPT ?= a panda is dancing
SUBJECT ?= a toy panda

.PHONY: quickstart test lint format test-threestudio clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -c constraints.txt -e ".[cpu,export,test]"
	touch $@

test: lint
	$(BIN)/pytest tests --cov --cov-report=term

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-threestudio *.egg-info build dist .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path "./outputs/*" -exec rm -rf {} +
