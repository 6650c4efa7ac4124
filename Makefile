# Everything a fresh machine with Python and make needs. `make demo` and `make test` install first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo demo-agent demo-support test check faults bench bench-workflow bench-schedule clean

help:
	@echo "make demo            review real code on 4 peers, one of them killed on the way"
	@echo "make demo-agent      an LLM agent killed in the middle, and its bill"
	@echo "make demo-support    real tickets through a ladder of agents, people last"
	@echo "make test            lint, types and every test but the long fault runs"
	@echo "make faults          10,000 tasks and more under seeded faults, minutes long"
	@echo "make bench           throughput beside a bare nats-py loop of the same promise"
	@echo "make bench-workflow  durable calls, steps and parks beside a bare submit"
	@echo "make bench-schedule  bids beside six other ways to hand tasks to peers, half an hour"
	@echo "make clean           remove .venv and caches"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11: make PYTHON=/path/to/newer"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[local,agents,llm,support,dev]'
	@touch $@

demo: install
	@$(BIN)/mesh demo

demo-agent: install
	@$(BIN)/mesh demo-agent

demo-support: install
	@$(BIN)/python -m agents.support_desk.demo $(if $(DATA),--data $(DATA))

# Lint and types, exactly as CI runs them.
check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: check
	$(BIN)/pytest -m "not slow"

faults: install
	$(BIN)/python -m tests.faults.storm
	$(BIN)/pytest tests/faults -m slow

bench-workflow: install
	$(BIN)/python -m ops.bench.workflow

bench-schedule: install
	$(BIN)/python -m ops.bench.schedule --plot docs/schedule.svg

bench: install
	$(BIN)/python -m ops.bench.throughput

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
