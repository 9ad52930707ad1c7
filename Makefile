# venv and pip only: nothing here needs to be fetched first.
PYTHON ?= python3
BIN := .venv/bin
ARITHMETIC := tests/nn tests/distributed tests/objectives tests/backbones tests/test_optim.py tests/test_rounding.py

.PHONY: install demo test test-other-sums check format docs clean

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

# Two processes of one thread each: tests are of tiny tensors, which a second thread hardly speeds up.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: install
	$(PYTEST)

# The tests of arithmetic once more as an older processor adds up: without AVX, in torch and oneDNN,
# in one thread. Every objective on every backbone only trains, and compares no numbers.
test-other-sums: export ATEN_CPU_CAPABILITY = default
test-other-sums: export ONEDNN_MAX_CPU_ISA = SSE41
test-other-sums: install
	$(PYTEST) $(ARITHMETIC) -k "not test_trains_two_steps_packed"

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
