# make demo   the whole path on the CPU: pictures -> codes -> store -> training -> prompts -> runs/demo/report.html
# make test   linters, type checker and the tests
# Both create .venv with what they need; only Python 3.11+ and make have to be there.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed

.PHONY: demo test test-slow lint bench clean

demo: $(INSTALLED)
	$(RUN) -m lvm demo $(ARGS)

test: $(INSTALLED)
	$(RUN) -m pytest -m "not slow" $(ARGS)

test-slow: $(INSTALLED)
	$(RUN) -m pytest -m slow $(ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check . && $(VENV)/bin/mypy

bench: $(INSTALLED)
	$(RUN) -m lvm bench $(ARGS)

# torch first and under the constraints: another package would pull a CUDA build of it.
# taming-transformers declares torchvision, which nothing here uses: --no-deps.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(RUN) -m pip install --quiet --constraint constraints.txt --no-deps taming-transformers==0.0.1
	touch $@

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache
