PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check -q

.PHONY: install demo evidence test check docs clean

install: $(VENV)/.installed

# torch first and pinned: a bare "torch" would bring gigabytes of CUDA to a machine without a GPU.
$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[dev]'
	touch $@

# What the quickstart needs, and no more: half of the time that the tests' packages take.
$(VENV)/.demo: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt torch
	$(PIP) install -c constraints.txt -e '.[video,coreml,onnx,lora]'
	touch $@

demo: $(VENV)/.demo
	$(BIN)/dit-compress run recipes/quickstart.yaml

evidence: install
	$(BIN)/dit-compress run recipes/shapes.yaml
	$(BIN)/python benchmarks/evidence.py runs/shapes

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: install
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry .
	$(BIN)/codespell

docs: install
	$(PIP) install -c constraints.txt -e '.[docs]'
	$(BIN)/python docs/stage.py build/pages
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q

clean:
	rm -rf $(VENV) build runs dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
