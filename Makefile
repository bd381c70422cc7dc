# make quickstart   one image and one sentence -> a 4D scene, on this machine's CPU or GPU
# make test         lint, then every test, with coverage
# make quick        the tests that are quick, for while you work
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# make quickstart IMAGE=... PROMPT="a fox is jumping"
IMAGE ?= load/toy-panda/image.png
PROMPT ?= a panda is dancing

.PHONY: quickstart test quick lint format test-threestudio clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -c constraints.txt -e ".[cpu,export,test]"
	touch $@

quickstart: $(INSTALLED)
	$(BIN)/python animate.py "$(IMAGE)" --prompt "$(PROMPT)" --preset toy

quick: $(INSTALLED)
	$(BIN)/pytest tests -q -n 2 -m "not slow and not gpu and not threestudio"

test: lint
	$(BIN)/pytest tests -n 2 --cov --cov-report=term

# THREESTUDIO_ROOT=<unmodified checkout> make test-threestudio
test-threestudio: $(INSTALLED)
	PYTHON=$(PYTHON) tests/threestudio_host/install.sh
	$(BIN)/pytest tests/test_threestudio.py -rs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-threestudio *.egg-info build dist .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path "./outputs/*" -exec rm -rf {} +
