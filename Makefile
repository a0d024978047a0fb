# `make demo` and `make test` need nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# Threads that spin on a busy two-core machine cost 3 to 10 times.
TEST_ENV = OMP_NUM_THREADS=1 PYTHONSAFEPATH=1 HF_HUB_OFFLINE=1

.PHONY: demo test check-large results bench bench-commands clean install install-dev lint types imports pytest

demo: install
	$(BIN)/hfq demo

test: install-dev lint types imports pytest

# The wheel is built and installed, never the source tree: what is tested is what a user gets.
install: $(BIN)/python
	rm -rf build hfq.egg-info
	$(BIN)/python -m pip install --quiet -c constraints.txt '.[video,report,export,c2pa]'
	$(BIN)/python -m pip install --quiet --no-deps --force-reinstall .
	PYTHONSAFEPATH=1 $(BIN)/python -m hfq.compile_kernels

install-dev: install
	$(BIN)/python -m pip install --quiet -c constraints.txt --group dev

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

lint:
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

# Started outside the repository, where the folder hfq/ would hide the installed package.
types:
	cd $(VENV) && bin/mypy --config-file ../pyproject.toml -p hfq

imports:
	cd $(VENV) && bin/lint-imports --config ../pyproject.toml

pytest:
	$(TEST_ENV) $(BIN)/python -m pytest -m "not large" -n 2 --dist loadfile

# Real 14B widths; writes the figures that the docs quote.
check-large: install-dev
	$(TEST_ENV) $(BIN)/python -m pytest -m large -s

# The tables of docs/results.md; an interrupted run goes on.
results: install-dev
	$(BIN)/python benchmarks/results.py --work $(VENV)/results --out benchmarks/results --docs docs/results.md

# Speed against peers and limits, and the tables of docs/performance.md; some minutes on a machine with nothing else to do.
bench: install-dev
	$(BIN)/python -m pip install --quiet -c constraints.txt --group bench
	$(BIN)/python benchmarks/generation.py --out benchmarks/results/generation.json
	$(BIN)/python benchmarks/bench.py --out benchmarks/results --docs docs/performance.md

# Whole commands and calibration at 14B widths, for the tables of `make bench`; much longer, 6 GB of disk.
bench-commands: install-dev
	$(BIN)/python benchmarks/conversion.py --work $(VENV)/bench --rounds 7 --out benchmarks/results/conversion.json
	$(BIN)/python benchmarks/calibration_cost.py --out benchmarks/results/calibration-cost.json

clean:
	rm -rf $(VENV) build hfq.egg-info
