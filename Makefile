# Everything a person or CI does, by one word. The environment makes itself.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo demo-bundle docs test test-slow lint format train-demo clean

BUNDLE := build/demo-int8
demo: $(READY)
	$(BIN)/python -m export --model demo --precision int8 --out $(BUNDLE)
	$(BIN)/python -m export verify $(BUNDLE) --model demo --quiet
	$(BIN)/recomp demo --model $(BUNDLE) --tokens 32

# What `recomp ask` answers with when no other model is named.
PACKAGED := paddle_recomp/assets/demo/bundle
demo-bundle: $(READY)
	$(BIN)/python -m export --model demo --precision int8 --golden --out $(PACKAGED)
	$(BIN)/python -m export verify $(PACKAGED) --model demo --quiet

# The pages that are made from code.
docs: $(READY)
	$(BIN)/recomp methods --markdown > docs/methods.md
	$(BIN)/python -m tests.bundle.tables
	$(BIN)/python -m tests.limits_table

# The tests run in this many processes, which take up to 2 GB each.
WORKERS ?= 2
test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(READY): pyproject.toml setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[paddle,export,dev]"
	touch $(READY)

# Torch and Paddle do not share an environment: the tool has its own.
TRAIN := .venv-train
$(TRAIN)/.ready: pyproject.toml setup.py
	$(PYTHON) -m venv $(TRAIN)
	$(TRAIN)/bin/python -m pip install --disable-pip-version-check -e ".[train]"
	touch $(TRAIN)/.ready

train-demo: $(TRAIN)/.ready
	for stage in clip check llava export evaluate pictures; do \
		$(TRAIN)/bin/python -m training $$stage || exit 1; \
	done
	$(MAKE) demo-bundle

clean:
	rm -rf $(VENV) $(TRAIN) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
