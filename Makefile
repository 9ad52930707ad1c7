# venv and pip only: nothing here needs to be fetched first.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: install demo test check format docs clean

install: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "vitrail needs Python 3.11 or newer")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch torchvision
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,dev,coco,fast,hf,onnx,parquet,tensorboard,text,tiff]'
	touch $@

# Pretrains SimDINO on handwritten digits, evaluates, and writes runs/demo/report.html.
demo: install
	rm -rf runs/demo
	$(BIN)/vitrail pretrain simdino_digits --out runs/demo
	$(BIN)/vitrail evaluate runs/demo
	$(BIN)/vitrail report runs/demo

test: install
	$(BIN)/python -m pytest

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv build dist *.egg-info

# Writes the tables of README.md and docs/reference.md from the registries.
docs: install
	$(BIN)/python docs/generate.py
