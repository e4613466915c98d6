# The doors to the project. A fresh machine needs Python >= 3.11 with venv, make and git; the rest goes into .venv.
#
#   make demo       environment, then the whole method on the embedded task
#   make test       environment, then the fast tests
#   make test-slow  also PyTorch, as the oracle of the parity tests, reasoning-gym (needs a C compiler) and wandb, then the slow tests
#   make test-versions  model, tokenizer and checkpoint tests with the oldest and the newest versions that are allowed
#   make bench-gpu  on a GPU: the laws checked on the card, then the cost of a run at the shape of Llama-3-8B
#   make plan-gpu   XLA's GPU compiler for scripts/plan.py, into .venv-gpu (2.8 GB; needs no GPU)
#   make campaign   thousands of damaged inputs, each refused or read right (docs/reliability.md); SEED=0, INPUTS=10000
#   make campaign-kills  runs that are killed at random moments and go on, bit for bit; SEED=0, KILLS=100
#   make lint       ruff and pyright
#   make docs       the site of docs/, into build/site; a broken link fails
#   make venv       the environment alone
#   make clean      remove what tools left behind; .venv and runs/ stay

PYTHON ?= python3
PY := .venv/bin/python

# A driver decides between CPU wheels and CUDA's. The choice is part of the stamp's name, so that a driver
# which appears later makes the next `make venv` install CUDA's.
ACCELERATOR := $(shell if nvidia-smi >/dev/null 2>&1 || [ -e /proc/driver/nvidia ]; then echo cuda; else echo cpu; fi)
PROJECT := $(if $(filter cuda,$(ACCELERATOR)),.[cuda],.)

# -qq: errors only. Nothing that an activated environment or a user's pip settings say may lead past .venv.
PIP_INSTALL := $(PY) -m pip install -qq --disable-pip-version-check
export PIP_USER := 0
unexport PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX PIP_ROOT PIP_PYTHON VIRTUAL_ENV

# What XLA does with the layers' weights changed with JAX 0.12 (docs/performance.md, "Compiled for a GPU, not timed").
OLD_JAX := note: without Python 3.12 JAX is 0.10.1, whose compiler copies the layers' weights at every token: decoding moves 2.6 times as much in memory as with JAX 0.12.

NEEDS := pyproject.toml requirements.txt
MADE := .venv/.made
RUN := .venv/.installed-$(ACCELERATOR)
TEST := .venv/.installed-test
LINT := .venv/.installed-lint
DOCS := .venv/.installed-docs
PARITY := .venv/.installed-parity

# Environments with other versions: the oldest of every need on this Python, the newest on Python 3.12.
PYTHON312 ?= python3.12
VERSIONED := $(addprefix tests/test_, jaxlib.py llama.py attention.py tokenizer.py checkpoint.py huggingface_load.py tokenizer_files.py loader.py)
# transformers 4 stands alone: the project needs 5, but others read what it writes with 4.
test-versions: export LONGSHOT_TRANSFORMERS4 := $(CURDIR)/.venv-transformers4/bin/python

SEED := 0
INPUTS := 10000
KILLS := 100

.PHONY: venv test test-slow test-versions campaign campaign-kills lint docs demo plan-gpu bench-gpu clean

venv: $(RUN)

test: $(TEST)
	$(PY) -m pytest -n auto --dist loadfile

test-slow: $(PARITY)
	$(PY) -m pytest -n auto --dist loadfile -m "slow and not long"

test-versions: .venv-lowest/.installed .venv-newest/.installed .venv-transformers4/.installed
	for made in lowest newest; do \
	  .venv-$$made/bin/python -m pytest -n auto --dist loadfile $(VERSIONED) || exit 1; \
	done

campaign: $(TEST)
	PYTHONPATH=tests $(PY) -m campaign --seed $(SEED) --inputs $(INPUTS)

campaign-kills: $(TEST)
	PYTHONPATH=tests $(PY) -m campaign.kills --seed $(SEED) --kills $(KILLS)

lint: $(LINT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m pyright

docs: $(DOCS)
	$(PY) -m mkdocs build --strict --quiet

plan-gpu: .venv-gpu/.installed

# The memory of the card as a plan allows it; JAX does not start where the old name of the setting is set too.
ON_CARD := env -u XLA_PYTHON_CLIENT_MEM_FRACTION XLA_CLIENT_MEM_FRACTION=0.9 JAX_PLATFORMS=cuda $(PY)

ifeq ($(ACCELERATOR),cpu)
bench-gpu:
	@echo "error: no NVIDIA driver is here, so there is no GPU to measure: run 'make bench-gpu' on a machine with one." >&2; exit 2
else
bench-gpu: $(TEST)
	@$(ON_CARD) -c 'import jax; jax.devices()' 2>/dev/null || { \
	  echo "error: JAX cannot use the GPU, though a driver is here: \"JAX_PLATFORMS=cuda $(PY) -c 'import jax; jax.devices()'\" says why." >&2; exit 2; }
	$(ON_CARD) -m pytest -m card tests/test_law_rescore.py tests/test_coconut_parity.py tests/test_attention.py
	$(ON_CARD) scripts/bench.py --config configs/published_single.py --config.ppo.questions=16 \
	  --config.ppo.minibatches=1 --config.ppo.micro_batches=4 \
	  --only update --profile runs/bench-gpu --output runs/bench-gpu/bench.json
endif

demo: $(RUN)
	$(PY) scripts/demo.py

clean:
	rm -rf build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path "*venv*" -prune -exec rm -rf {} +

# A .venv that works is kept, whoever made it; a half-made or too old one is made anew.
$(MADE):
	@$(PY) -c 'import sys, pip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  command -v "$(PYTHON)" >/dev/null || { echo "error: '$(PYTHON)' is not there; name a Python 3.11 or newer: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 2; }; \
	  "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "error: '$(PYTHON)' is $$("$(PYTHON)" -V 2>&1), but Python 3.11 or newer is needed: make PYTHON=/path/to/python3 $(MAKECMDGOALS)" >&2; exit 2; }; \
	  "$(PYTHON)" -m venv --clear .venv; }
	@touch $@

$(RUN): $(MADE) $(NEEDS)
	@echo "Installing LongShot JAX for $(ACCELERATOR) into .venv (some minutes the first time) ..."
	@[ $(ACCELERATOR) = cpu ] || $(PY) -c 'import sys; sys.exit(sys.version_info < (3, 12))' || echo "$(OLD_JAX)" >&2
	@$(PIP_INSTALL) -e '$(PROJECT)'
	@touch $@

# The project itself stands in $(RUN); these add the needs of one extra to it.
$(TEST): $(RUN)
	@echo "Installing what the tests need ..."
	@$(PIP_INSTALL) -e '.[test]'
	@touch $@

$(LINT): $(RUN)
	@echo "Installing ruff and pyright ..."
	@$(PIP_INSTALL) -e '.[lint]'
	@touch $@

$(DOCS): $(RUN)
	@echo "Installing mkdocs ..."
	@$(PIP_INSTALL) -e '.[docs]'
	@touch $@

$(PARITY): $(TEST)
	@echo "Installing PyTorch, reasoning-gym, wandb and what the notebook needs, which only slow tests use ..."
	@$(PIP_INSTALL) -e '.[parity,reasoning-gym,notebook,wandb]'
	@touch $@

.venv-lowest/.installed: $(MADE) $(NEEDS)
	@echo "Installing the oldest versions that are allowed into .venv-lowest ..."
	@$(PY) -m venv --clear .venv-lowest
	@.venv-lowest/bin/python -m pip install -qq --disable-pip-version-check uv
	@.venv-lowest/bin/uv pip install -q --python .venv-lowest/bin/python --resolution lowest-direct -e '.[test]'
	@touch $@

.venv-newest/.installed: $(NEEDS)
	@echo "Installing the newest versions that are allowed into .venv-newest ..."
	@$(PYTHON312) -m venv --clear .venv-newest
	@.venv-newest/bin/python -m pip install -qq --disable-pip-version-check -e '.[test]'
	@touch $@

.venv-gpu/.installed: $(MADE) $(NEEDS)
	@echo "Installing XLA's GPU compiler into .venv-gpu (2.8 GB) ..."
	@$(PYTHON312) -m venv --clear .venv-gpu 2>/dev/null || { echo "$(OLD_JAX)" >&2; $(PY) -m venv --clear .venv-gpu; }
	@.venv-gpu/bin/python -m pip install -qq --disable-pip-version-check -e '.[cuda]'
	@touch $@

.venv-transformers4/.installed: $(MADE)
	@echo "Installing transformers 4, with which others read exports, into .venv-transformers4 ..."
	@$(PY) -m venv --clear .venv-transformers4
	@.venv-transformers4/bin/python -m pip install -qq --disable-pip-version-check 'transformers==4.57.*' jinja2
	@touch $@
