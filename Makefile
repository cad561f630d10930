# Every target makes the virtual environment that it needs; nothing else has to be typed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# One thread of linear algebra each keeps two test workers from fighting over two cores.
test test-slow: export OMP_NUM_THREADS := 1

.PHONY: demo test test-slow check fix bench-smoke docs clean

$(VENV)/package: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) --editable '.[report]'
	touch $@

$(VENV)/dev: $(VENV)/package
	$(PIP) --editable '.[dev]'
	touch $@

$(VENV)/docs: $(VENV)/package
	$(PIP) --editable '.[docs]'
	touch $@

demo: $(VENV)/package
	mkdir -p demo && rm -rf demo/report
	$(BIN)/oamip prune examples/fashion/resnet8.onnx demo/resnet8-pruned.onnx \
	  --data examples/fashion/calibration.npz --eval examples/fashion/test.npz \
	  --target latency=0.8 --set threads=1 --json demo/result.json --report demo/report

test: $(VENV)/dev
	$(BIN)/python -m pytest --numprocesses 2 -m 'not slow'

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m slow

check: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python docs/generate.py --check

fix: $(VENV)/dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/python docs/generate.py

bench-smoke: $(VENV)/dev
	for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file --quick || exit 1; done

docs: $(VENV)/docs
	$(BIN)/python docs/generate.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:
	rm -rf $(VENV) demo site build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
