# Two commands from a fresh clone: `make demo` and `make test`. Everything is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
seeds ?= 1

.PHONY: setup demo test lint lab exercises solutions slides bench check-gpu faults clean

setup: .venv/installed

.venv/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed; name one with: make PYTHON=python3.12 setup"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "installing into .venv (a few GB on Linux, most of it PyTorch) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: setup
	$(BIN)/cpsd run params/demo.yaml seeds=$(seeds)

test: setup lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/nbstripout --verify notebooks/*.ipynb notebooks/exercises/*.ipynb

# Copies, so that what is saved with outputs is not what git and `make lint` look at. One that is there stays as it was saved.
lab: setup
	@cd notebooks && find . -name '.*_checkpoints' -prune -o -type f -print | while read -r one; do \
		mkdir -p "../outputs/lab/$$(dirname "$$one")" && test -e "../outputs/lab/$$one" || cp "$$one" "../outputs/lab/$$one"; done
	@echo "your copies of notebooks/ are in outputs/lab/; delete one to have it anew"
	$(BIN)/jupyter lab --notebook-dir=. outputs/lab/01_data.ipynb

# For a class: exercises without their solutions in outputs/exercises/, and the solved ones executed in outputs/solutions/.
exercises solutions: setup
	$(BIN)/python notebooks/build.py $@

# Decks of 00, 02, 04 and 07 in outputs/slides/, from a finished run; shown without a network. make slides run=tiny
run ?= demo
slides: setup
	$(BIN)/python notebooks/build.py slides $(run)

# make bench args="--quick" is a smoke test of seconds; args="--help" lists the sizes.
bench: setup
	PYTHONPATH=tests $(BIN)/python -m bench $(args)

# Is the training right on this GPU, and how fast? args="--device cpu" checks what can be checked without one.
check-gpu: setup
	$(BIN)/cpsd check-gpu $(args)

# Kills, damaged files, full disks, hostile input: minutes, and a table. `make test` runs a twentieth of it.
KILLS := tests/workbench/test_run.py::test_a_run_killed_at_random_moments_ends_with_the_same_weights
faults: setup
	CPSD_FAULTS=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/faults $(KILLS) $(args)

clean:
	rm -rf .venv outputs/[!.]*
