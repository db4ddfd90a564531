# `make demo` and `make test` work on a fresh clone: they need only python3.11+, git and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test coverage lint clean

demo: $(VENV)/.installed
	$(BIN)/castling demo

test: $(VENV)/.installed
	$(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0 --durations 20

coverage: $(VENV)/.installed
	$(BIN)/pytest -n 2 --dist loadfile --max-worker-restart 0 --cov --cov-report=term

lint: $(VENV)/.installed $(VENV)/stubs/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

# One environment for all three, made once and remade when the dependencies change.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

# The types of tensorrt without tensorrt, in a folder of their own: among the packages they would pass for it. They are
# published with two mistakes of grammar.
$(VENV)/stubs/.installed: $(VENV)/.installed
	rm -rf $(VENV)/stubs
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(VENV)/stubs tensorrt-stubs==10.13.0.35.1
	sed -i.published -e 's/ in: list/ in_: list/' -e 's/channel_axis: int)/channel_axis: int = ...)/' \
		$(VENV)/stubs/tensorrt_bindings/tensorrt.pyi
	touch $@

clean:
	rm -rf $(VENV) castled .mypy_cache .pytest_cache .ruff_cache
