# make quickstart   one image and one sentence -> a 4D scene, on this machine's CPU or GPU
# make test         lint, then every test, with coverage
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# make quickstart IMAGE=... SUBJECT="a toy fox" PROMPT="a fox is jumping"
IMAGE ?= load/toy-panda/_rgba.png
PROMPT ?= a panda is dancing
SUBJECT ?= a toy panda

.PHONY: quickstart test lint format test-threestudio clean

$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --upgrade pip
	$(BIN)/pip install -c constraints.txt -e ".[cpu,export,test]"
	touch $@

STAGE := HF_HUB_OFFLINE=1 $(BIN)/python launch.py --train data.image.image_path="$(IMAGE)"

quickstart: $(INSTALLED)
	$(STAGE) --config configs/toy/stage1.yaml system.prompt_processor.prompt="$(SUBJECT)"
	$(STAGE) --config configs/toy/stage2.yaml system.prompt_processor.prompt="$(PROMPT)" \
		system.weights="outputs/animate124-toy-stage1/$(SUBJECT)@LAST/ckpts/last.ckpt"
	$(STAGE) --config configs/toy/stage3.yaml system.prompt_processor.prompt="$(PROMPT)" \
		system.prompt_processor_cn.prompt="$(PROMPT)" \
		system.weights="outputs/animate124-toy-stage2/$(PROMPT)@LAST/ckpts/last.ckpt"
	@echo "\nThe 4D scene, as videos:"
	@ls -d outputs/animate124-toy-stage3/*/ | tail -n 1 | xargs -I {} find {}save -name "*.mp4" | sort

test: lint
	$(BIN)/pytest tests --cov --cov-report=term

# THREESTUDIO_ROOT=<unmodified checkout> make test-threestudio
test-threestudio: $(INSTALLED)
	PYTHON=$(PYTHON) tests/threestudio_host/install.sh
	$(BIN)/pytest tests/test_threestudio.py -rs

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .venv-threestudio *.egg-info build dist .pytest_cache .ruff_cache .hypothesis .coverage
	find . -name __pycache__ -not -path "./outputs/*" -exec rm -rf {} +
