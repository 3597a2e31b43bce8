# Two commands: `make run` serves the dashboard, `make test` runs every test. Both make what they need first.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# Two processes; the tests of a file stay together and in order.
TWO    := -n 2 --dist loadfile --no-loadscope-reorder

# Tests that train little and start nothing: under a minute on two cores.
QUICK  := tests/config tests/comparison tests/test_outcome.py tests/test_docs.py tests/test_supply.py \
          tests/dashboard/test_figures.py tests/dashboard/test_comparison_choices.py tests/diagnosis tests/networks/test_inits.py

.PHONY: run quick test test-offline lint style clean

run: $(VENV)/.installed
	$(BIN)/streamlit run dashboard/Home.py

test: lint
	@bash tests/ensure_system.sh
	$(BIN)/python -m pytest $(TWO) --durations=15

quick: style
	$(BIN)/python -m pytest $(TWO) -m "not slow" $(QUICK)

# The same tests where there is no network at all: nothing but this machine's own loopback.
test-offline: $(VENV)/.installed-tests
	@bash tests/ensure_system.sh
	unshare --map-root-user --net --mount sh -c 'ip link set lo up && exec $(BIN)/python -m pytest $(TWO) $(TESTS)'

lint: style
	$(BIN)/mypy --no-error-summary

style: $(VENV)/.installed-tests
	$(BIN)/ruff check core dashboard tests
	$(BIN)/ruff format --check -q core dashboard tests
	$(BIN)/oxlint --quiet --deny-warnings dashboard

$(VENV)/.installed: requirements.txt tests/constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "InitScope needs Python 3.11 or newer; try: make PYTHON=python3.11 run")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -r requirements.txt -c tests/constraints.txt
	touch $@

$(VENV)/.installed-tests: $(VENV)/.installed tests/requirements.txt
	$(BIN)/python -m pip install --disable-pip-version-check -q -r tests/requirements.txt -c tests/constraints.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
