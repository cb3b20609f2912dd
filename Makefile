# The two commands of the README: make demo, make test. Everything lands in .venv and runs/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEERS := .venv-bench
RUN := runs/demo
KATEX := $(VENV)/katex
KATEX_VERSION := 0.16.22

.PHONY: demo test bench studies soak check docs dist constraints audit clean

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

soak: $(VENV)/.installed-dev  # every point, kill, damage and random input instead of a few: hours
	$(BIN)/python -m pytest -n 2 --dist load --soak --slow --timeout 0 tests/soak

# Every figure of docs/benchmarks.md and the bound's in one run, of two hours: what is printed goes to runs/bench, ready for docs/results.
bench: $(PEERS)/.installed demo
	mkdir -p runs/bench runs/quality
	$(STORE) start -- python benchmarks/start.py $(RUN)
	$(PEERS)/$(STORED) peers -- python benchmarks/peers.py --compiled --bf16 --json runs/bench/peers.json
	$(STORE) chains -- python benchmarks/created_image.py 50 64 1 1000
	$(PEERS)/$(STORED) growth -- python benchmarks/growth.py --rounds 7 --json runs/bench/growth.json
	$(STORE) frontier --after "xhat train mnist --run $(RUN)" -- xhat evaluate $(RUN) --frontier --steps 16 --n 500
	$(STORE) sampling --after "xhat train mnist --run $(RUN)" -- python benchmarks/sampling.py $(RUN) 250 7
	rm -rf runs/bench/bits
	$(BIN)/xhat train mnist-likelihood --run runs/bench/bits --max_minutes 12
	$(STORE) bound --after "xhat train mnist-likelihood --run runs/bench/bits --max_minutes 12" -- python benchmarks/bound.py runs/bench/bits 400 4 20
	$(PEERS)/bin/python benchmarks/peer_quality.py torchcfm runs/quality/torchcfm.npz
	$(PEERS)/bin/python benchmarks/peer_quality.py denoising-diffusion-pytorch runs/quality/denoising-diffusion-pytorch.npz
	$(STORE) time-to-quality -- python benchmarks/time_to_quality.py runs/quality --recipe mnist \
		--samples torchcfm runs/quality/torchcfm.npz \
		--samples denoising-diffusion-pytorch runs/quality/denoising-diffusion-pytorch.npz

TABLES := runs/studies
PLAIN := formulations targets weightings norms times patches bound-as-loss
TABLE = $(BIN)/python benchmarks/record.py --into $(TABLES) $(basename $(@F))
TRAIN := xhat train mnist --run runs/demo --max_minutes null --max_steps 2000
EVEN := --times "logit_normal(0, 1)" --terms.denoise.loss "denoising(space=v, weighting=from_density(logit_normal(0, 1)))"
AFTER = --after '$(TRAIN)'

# Every figure of docs/objectives.md and docs/created-image.md: many hours. A table that is in runs/studies is not made again, and
# a study that was stopped goes on. runs/demo is trained anew, as the tables say.
studies: $(addprefix $(TABLES)/,$(addsuffix .txt,$(PLAIN) random-noise two-scales embedded-64 embedded-512 bound-as-loss-colour \
	jensen-gap ring chains created-image-even created-image chain-gradient readable-digits pareto policy))

$(TABLES): $(VENV)/.installed
	mkdir -p $@

$(addprefix $(TABLES)/,$(addsuffix .txt,$(PLAIN))): | $(TABLES)
	$(TABLE) -- xhat compare studies/$(basename $(@F)).yaml --out runs/$(basename $(@F)) --jobs 1

$(TABLES)/random-noise.txt: $(TABLES)/formulations.txt
	$(TABLE) -- python benchmarks/random_noise.py runs/formulations/unit-noise/seed-0 --out runs

$(TABLES)/two-scales.txt: $(TABLES)/formulations.txt
	$(TABLE) -- python benchmarks/two_scales.py runs/formulations

$(TABLES)/embedded-64.txt $(TABLES)/embedded-512.txt: | $(TABLES)
	$(TABLE) -- xhat compare studies/$(basename $(@F)).yaml --out runs/$(basename $(@F)) --use benchmarks/embedded.py --jobs 1

$(TABLES)/bound-as-loss-colour.txt: | $(TABLES)
	$(TABLE) -- xhat compare studies/bound-as-loss-colour.yaml --out runs/bound-as-loss-colour --use benchmarks/shapes.py --jobs 1

$(TABLES)/jensen-gap.txt: | $(TABLES)
	$(TABLE) -- python benchmarks/toy_created_image.py --gap

$(TABLES)/ring.txt: | $(TABLES)
	$(TABLE) -- python benchmarks/ring.py --picture $(TABLES)/ring.png

$(TABLES)/chains.txt: | $(TABLES)
	$(TABLE) -- python benchmarks/created_image.py 50 64 1 1000

$(TABLES)/created-image-even.txt: | $(TABLES)
	rm -rf runs/demo runs/created-image
	$(BIN)/$(TRAIN) $(EVEN)
	$(TABLE) --after '$(TRAIN) $(EVEN)' -- xhat compare studies/created-image.yaml --out runs/created-image --jobs 1

$(TABLES)/demo: $(TABLES)/created-image-even.txt
	rm -rf runs/demo runs/created-image
	$(BIN)/$(TRAIN)
	touch $@

$(TABLES)/created-image.txt: $(TABLES)/demo
	$(TABLE) $(AFTER) -- xhat compare studies/created-image.yaml --out runs/created-image --jobs 1

$(TABLES)/chain-gradient.txt: $(TABLES)/demo
	$(TABLE) $(AFTER) -- xhat gradients runs/demo --chain 50

$(TABLES)/readable-digits.txt: $(TABLES)/demo
	$(TABLE) $(AFTER) -- xhat compare studies/readable-digits.yaml --out runs/readable-digits --use benchmarks/judges.py --jobs 2

$(TABLES)/pareto.txt: $(TABLES)/readable-digits.txt
	$(TABLE) -- python benchmarks/pareto.py runs/readable-digits patches fid --picture $(TABLES)/pareto.png

$(TABLES)/policy.txt: $(TABLES)/demo
	$(TABLE) $(AFTER) -- python benchmarks/policy.py runs/demo --batches 24

STORED = bin/python benchmarks/record.py --into runs/bench
STORE = $(VENV)/$(STORED)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev $(KATEX)/.installed
	$(BIN)/mkdocs build --strict

dist: $(VENV)/.installed-dev
	$(BIN)/python -m build --no-isolation

constraints:  # with what is installed: what pyproject.toml asks for may not be in constraints.txt yet
	test -x $(BIN)/uv || $(MAKE) $(VENV)/.installed-dev
	$(BIN)/python .ci/lock.py $(UV)

audit: $(VENV)/.installed-dev
	@$(BIN)/python .ci/audit.py $(AUDIT)

# .venv with xhat and the extras named. pip takes no file whose SHA-256 is not in constraints.txt, and builds none, because what a
# build fetches is not checked. pip itself comes first: before 26.1 it cannot read the hashes of constraints. torch comes next, as
# the build that pip takes on this machine: with hashes alone it prefers a registry's CUDA build to a CPU build in a folder.
define INSTALL
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "xhat needs Python 3.11 or newer: make PYTHON=python3.12")'
$(PYTHON) -m venv $(VENV)
sed -n '/^pip==/,/[^\\]$$/p' constraints.txt >$(VENV)/pip.txt
sed -n '/^torch==/,/[^\\]$$/p' constraints.txt >$(VENV)/torch.txt
$(CHECKED) --requirement $(VENV)/pip.txt
$(PIP) download --quiet --no-deps --only-binary :all: --dest $(VENV)/torch $$(sed 's/ .*//; q' $(VENV)/torch.txt)
$(CHECKED) --no-deps --no-index --find-links $(VENV)/torch --requirement $(VENV)/torch.txt
rm -r $(VENV)/torch
$(BIN)/python .ci/needed.py $(1) >$(VENV)/needed.txt
$(CHECKED) --constraint constraints.txt --requirement $(VENV)/needed.txt
$(PIP) install --quiet --no-deps --no-build-isolation --editable .
@touch $@
endef
PIP = $(BIN)/python -m pip
CHECKED = $(PIP) install --quiet --require-hashes --only-binary :all:

$(VENV)/.installed: pyproject.toml constraints.txt
	$(call INSTALL)

$(VENV)/.installed-dev: pyproject.toml constraints.txt
	$(call INSTALL,dev)

# The libraries that xhat is measured beside, each in the version of benchmarks/requirements.txt, without what it asks for:
# some of that cannot be installed, and the modules that are imported stand there, too. By version, not by hash: this environment
# is for measuring alone.
$(PEERS)/.installed: benchmarks/requirements.txt pyproject.toml constraints.txt
	$(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet $$(sed -n 's/^\(torch==[^ ]*\).*/\1/p' constraints.txt)
	$(PEERS)/bin/python -m pip install --quiet --editable .
	$(PEERS)/bin/python -m pip install --quiet --no-deps --requirement benchmarks/requirements.txt
	@touch $@

$(KATEX)/.installed: Makefile | $(VENV)/.installed-dev
	npm install --prefix $(KATEX) --no-audit --no-fund --silent katex@$(KATEX_VERSION)
	@touch $@

clean:
	rm -rf $(VENV) $(PEERS) runs dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
