# Everything a user or contributor runs. `make` alone prints this list.

PYTHON ?= python3
BIN := .venv/bin
ARGS ?=
WORKERS ?= auto

.DEFAULT_GOAL := help
.PHONY: help setup clients quickstart test check lint types format bench-quickstart bench-tokenizer bench-models bench-experts bench-linear-attention bench-train bench-serve bench-soak bench-energy bench-pretrain-recipes bench-sentiment docs lock clean

help: ## print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-22s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## make .venv with the locked dependencies (does nothing when it is current)
	@command -v "$(PYTHON)" >/dev/null || { echo "setup: '$(PYTHON)' was not found. Install Python 3.11 or newer, or name one: make setup PYTHON=/path/to/python3"; exit 1; }
	@"$(PYTHON)" scripts/set_up.py

quickstart: setup ## the main job: raw reviews in, a tuned, int8, served model out (ARGS=--no-serve to end instead)
	$(BIN)/danlu run recipes/product_copy.yaml $(ARGS)

clients: setup ## make the environments of other people's clients that the tests run (nothing when they are current)
	@$(BIN)/python scripts/set_up_clients.py

test: setup clients ## every test, WORKERS (all cores) at once (ARGS="-k words" to choose; WORKERS=0 in one process)
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile $(ARGS)

check: lint types test ## lint, types and tests: what CI runs

lint: setup ## style and formatting, without changing anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## static types
	$(BIN)/pyright

format: setup ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench-quickstart: setup ## measure the main job in a fresh home; writes bench/results/quickstart.json
	$(BIN)/python bench/quickstart.py $(ARGS)

bench-tokenizer: setup ## characters per token against Qwen3's tokenizer; writes bench/results/tokenizer.json
	$(BIN)/python bench/tokenizer.py $(ARGS)

bench-models: setup ## measure the core against transformers on the same weights; writes bench/results/models.json
	$(BIN)/python bench/models.py $(ARGS)

bench-experts: setup ## measure layers of experts against transformers'; writes bench/results/experts.json
	$(BIN)/python bench/experts.py $(ARGS)

bench-linear-attention: setup ## time recurrent layers against softmax attention; writes a result and a plot
	$(BIN)/python bench/linear_attention.py $(ARGS)

bench-train: setup ## training against HF Trainer, PEFT, TRL and litgpt; writes bench/results/train.json (ARGS=--quick)
	$(BIN)/python bench/train.py $(ARGS)

bench-serve: setup ## the engine against llama.cpp, transformers and others; writes bench/results/serve.json
	$(BIN)/python bench/serve.py $(ARGS)

bench-soak: setup ## serve a mixed load for long and watch memory; writes bench/results/soak.json (ARGS="--minutes 30")
	$(BIN)/python bench/soak.py $(ARGS)

bench-pretrain-recipes: setup ## run the pre-training recipes whole, beside xz and n-grams (ARGS="--only=en")
	$(BIN)/python bench/pretrain_recipes.py $(ARGS)

bench-sentiment: setup ## the sentiment recipes beside TF-IDF and logistic regression (ARGS="--only=zh --seeds=17,18")
	$(BIN)/python bench/sentiment.py $(ARGS)

bench-energy: setup ## our energy figure beside codecarbon's; writes bench/results/energy.json
	$(BIN)/python bench/energy.py $(ARGS)

docs: setup ## write the measured numbers of bench/results into the READMEs and docs
	$(BIN)/python -m scripts.docs_numbers

lock: setup ## write constraints.txt from what .venv holds (CONTRIBUTING.md says when)
	$(BIN)/python scripts/lock.py

clean: ## remove .venv and caches; runs and downloads in .danlu stay
	rm -rf .venv .pytest_cache .ruff_cache .hypothesis
	find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
