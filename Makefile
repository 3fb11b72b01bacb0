# Everything from a fresh machine with Python and make: `make train`, `make test`.
#
# Another interpreter:        make train PYTHON=python3.12
# An environment of your own: make train VENV=/path/to/venv CONSTRAINTS=
#   (with the torch that it holds: without the constraints pip keeps what fits pyproject.toml)

PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
ARGS ?=
JOBS ?= 2

# A narrow model and few epochs, so that the first table of scores is there in a minute.
FIRST_RUN = hyperparameters.hidden_dim=128 hyperparameters.batch_size=16 \
	hyperparameters.learning_rate=5e-4 hyperparameters.max_epochs=10

# What `make paper` runs, the fewest runs first, and on which data; experiments named after a corpus run on that one only.
EXPERIMENTS = amb_dsgdn/table1_datasets amb_dsgdn/table8_overhead amb_dsgdn/table9_cost amb_dsgdn/fig5_warmup_meld \
	amb_dsgdn/table5_semantic_graph amb_dsgdn/fig7_noise amb_dsgdn/fig8_imbalance redifu/noise redifu/missing_modality \
	amb_dsgdn/fig5_warmup_iemocap amb_dsgdn/table2_iemocap amb_dsgdn/table3_meld amb_dsgdn/table6_balancing \
	amb_dsgdn/fig6_long_dialogues redifu/from_released amb_dsgdn/table4_modalities \
	amb_dsgdn/table7_base_execute_iemocap amb_dsgdn/table7_base_execute_meld amb_dsgdn/fig3_window \
	amb_dsgdn/fig4_heads redifu/stages
DISTURBED = amb_dsgdn/fig7_noise redifu/noise redifu/missing_modality
DATA ?= synthetic_meld synthetic_iemocap
RUNS ?= $(if $(filter trainer=smoke,$(ARGS)),runs/smoke,runs)

comma = ,
space = $(subst ,, )
listed = $(subst $(space),$(comma),$(strip $(1)))
of_data = $(filter-out $(addprefix %_,$(filter-out $(patsubst synthetic_%,%,$(1)),iemocap meld)),$(EXPERIMENTS))

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.merc-installed

.DEFAULT_GOAL := help
.PHONY: help install train models bench bench-scale bench-gpu paper test lint format wheel hooks clean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

install: $(INSTALLED) ## Create the environment (.venv) with the tested versions

train: $(INSTALLED) ## Train AMB-DSGDN on generated conversations; ARGS="key=value ..." changes the run
	$(BIN)/python -m merc.train model=amb_dsgdn data=synthetic_meld overwrite=true \
		$(FIRST_RUN) $(ARGS)

models: $(INSTALLED) ## List the models: parameters, FLOPs per utterance, the part of each stage
	$(BIN)/python -m merc.models

bench: $(INSTALLED) ## Measure speed, memory and start-up against the floor; ARGS="rounds=3 models=[amb_dsgdn]"
	$(BIN)/python -m merc.bench $(ARGS)

bench-scale: $(INSTALLED) ## Measure how cost grows with dialogue length and data size; ARGS="rounds=1"
	$(BIN)/python -m merc.bench.scale $(ARGS)

bench-gpu: $(INSTALLED) ## Measure seeds at once and recorded steps on a GPU; ARGS="measure=[bf16] seeds=[1,4]"
	$(BIN)/python -m merc.bench.gpu $(ARGS)

paper: $(INSTALLED) ## Run every experiment and report; ARGS="trainer=smoke" to try it, DATA="meld iemocap" for real data
	set -e; $(foreach data,$(DATA),$(BIN)/python -m merc.train -m data=$(data) run_root=$(RUNS) \
		experiment=$(call listed,$(call of_data,$(data))) $(ARGS);)
	$(BIN)/python -m merc.evaluate "sweep=[$(call listed,$(DISTURBED))]" run_root=$(RUNS) $(filter trainer%,$(ARGS))
	$(BIN)/python -m merc.report run_root=$(RUNS)

test: $(INSTALLED) ## Run all tests, the slow ones too; ARGS="-k store" chooses, JOBS=8 runs more at once
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(INSTALLED) ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: $(INSTALLED) ## Bring the code into the project's style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

wheel: $(INSTALLED) ## Build dist/merc-*.whl
	rm -rf build dist
	$(BIN)/python -m pip wheel --no-deps --no-build-isolation --wheel-dir dist .

hooks: $(INSTALLED) ## Check style and types at every git commit
	$(BIN)/pre-commit install

clean: ## Remove the environment, build products and caches; runs/ and stores/ stay
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find conf experiments hydra_plugins merc tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Made again when the requirements change.
$(INSTALLED): pyproject.toml $(CONSTRAINTS)
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install $(CONSTRAINTS:%=--constraint %) --editable '.[dev]'
	$(BIN)/python -m merc.kernels
	touch $@
