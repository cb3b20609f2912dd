# The two commands of the README: make demo, make test. Everything lands in .venv and runs/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUN := runs/demo
KATEX := $(VENV)/katex
KATEX_VERSION := 0.16.22

.PHONY: demo test check docs dist clean

demo: $(VENV)/.installed
	rm -rf $(RUN)
	$(BIN)/xhat train mnist --run $(RUN)
	$(BIN)/xhat sample $(RUN) --n 1000 --seed 1 --out $(RUN)/samples.npz
	$(BIN)/xhat evaluate $(RUN) --samples $(RUN)/samples.npz
	@echo
	@echo "digits drawn by your model:   $(RUN)/samples.png"
	@echo "how they came about:          $(RUN)/samples/"
	@echo "the loss while training:      $(RUN)/losses.png"
	@echo "more digits:                  $(BIN)/xhat sample $(RUN) --n 64 --seed 2 --out more.npz"

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev $(KATEX)/.installed
	$(BIN)/mkdocs build --strict

dist: $(VENV)/.installed-dev
	$(BIN)/python -m build --no-isolation

define VENV_OF_A_RECENT_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xhat needs Python 3.11 or newer: make PYTHON=python3.12")'
$(PYTHON) -m venv $(VENV)
endef

$(VENV)/.installed: pyproject.toml constraints.txt
	$(VENV_OF_A_RECENT_PYTHON)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(VENV_OF_A_RECENT_PYTHON)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(KATEX)/.installed: Makefile | $(VENV)/.installed-dev
	npm install --prefix $(KATEX) --no-audit --no-fund --silent katex@$(KATEX_VERSION)
	@touch $@

clean:
	rm -rf $(VENV) runs dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
