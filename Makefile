# make lab    set up, then open the first chapter in JupyterLab
# make test   set up, then run every test: the module, each cell of each notebook, the built book
# make book   set up, then build the site into _build/html
# make pdf    set up, build the site, and print it as one PDF into _build/pdf; needs Chromium or Chrome
# make weekly the checks of CONTRIBUTING, in an environment of their own with the newest packages
# PYTHON and VENV may be given: make lab PYTHON=python3.12 VENV=~/envs/diffusion

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
READY = $(VENV)/.ready
# As root, in a container, JupyterLab wants to be told that this is meant.
ALLOW_ROOT = $(if $(filter 0,$(shell id -u)),--allow-root)

.PHONY: lab test book pdf notebooks weekly clean

lab: $(READY)
	$(BIN)/jupyter lab --ServerApp.root_dir="$(CURDIR)" $(ALLOW_ROOT) notebooks/01_forward_diffusion.ipynb

# One run, one closing line. The tests build the book as a reader does, and fail on a warning.
test: $(READY)
	$(BIN)/pytest --nbval notebooks tests

book: $(READY)
	$(BIN)/jupyter-book build book

# Takes some minutes. What to print and where: see book/pdf.py.
pdf: $(READY)
	$(BIN)/python book/pdf.py --build

# Run every chapter again and store the new outputs.
notebooks: $(READY)
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --coalesce-streams \
	    --ExecutePreprocessor.record_timing=False notebooks/*.ipynb

weekly:
	$(PYTHON) tests/weekly.py

clean:
	rm -rf _build .weekly .pytest_cache .hypothesis .ruff_cache

$(READY): requirements.txt pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -r requirements.txt
	touch $@
