# make setup | demo | test | lint | docs. Each builds .venv first where it is missing or older than pyproject.toml and constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.ready-$(shell cat pyproject.toml constraints.txt | cksum | tr -d ' ')
# Waiting threads must sleep: spinning makes small networks many times slower on shared cores.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: setup demo test lint docs
setup: $(STAMP)

$(STAMP):
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v < (3, 14) else f"scoregen needs Python 3.11 to 3.13, found {v[0]}.{v[1]}: run make PYTHON=python3.12 ...")'
	@$(PYTHON) -m venv .venv || { echo "python3 -m venv failed; on Debian and Ubuntu: sudo apt-get install python3-venv"; exit 2; }
	@sh setup.sh $(BIN)/python
	@rm -f .venv/.ready-*; touch $@

demo: setup
	$(BIN)/python train.py
	$(BIN)/python sample.py --run runs/digits_edm --out out/demo
	@echo "The samples: out/demo/grid.png"

test: setup lint
	$(BIN)/python -m pytest -n 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
	@echo "The pages: site/index.html"
