# make test   lint, types and tests
# make demo   plan GPT-2 for two CPU processes, run it, plan it for GPUs that are not here
#
# Each sets up .venv first if it has to: a second call finds the stamp of these requirements and does not.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp-$(shell cat pyproject.toml constraints.txt | cksum | cut -d ' ' -f 1)

.PHONY: test demo clean

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/pytest -n 2 --dist worksteal

demo: $(STAMP)
	mkdir -p demo
	$(BIN)/autopart plan examples/gpt2.py --devices cpu:0,cpu:1 -o demo/gpt2-two-processes.json
	$(BIN)/autopart run demo/gpt2-two-processes.json examples/gpt2.py --steps 5 -o demo/gpt2-measured.json
	$(BIN)/autopart plan examples/gpt2.py --devices 1xh100-sxm-80gb,2xrtx-4090,1xt4 -o demo/gpt2-gpus.json

clean:
	rm -rf $(VENV) demo build dist

$(STAMP):
	@test -n "$(PYTHON)" || { echo "autopart needs Python 3.11 or newer and found none: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "autopart needs Python 3.11 or newer, $(PYTHON) is %d.%d: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@
