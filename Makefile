# Everything a fresh machine with Python and make needs. `make demo` and `make test` install first.

PYTHON ?= python3
# Tests that run beside each other; most of them wait most of the time.
WORKERS ?= 3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo demo-agent demo-support test check faults bench bench-workflow bench-schedule bench-limits bench-payloads bench-telemetry bench-accounts soak docs clean

help:
	@echo "make demo            review real code on 4 peers, one of them killed on the way"
	@echo "make demo-agent      an LLM agent killed in the middle, and its bill"
	@echo "make demo-support    real tickets through a ladder of agents, people last"
	@echo "make test            lint, types and every test but the long fault runs"
	@echo "make faults          100,000 tasks on one server and 20,000 on three under seeded faults, an hour"
	@echo "make bench           throughput beside a bare nats-py loop of the same promise"
	@echo "make bench-workflow  durable calls, steps and parks beside a bare submit"
	@echo "make bench-schedule  bids beside six other ways to hand tasks to peers, half an hour"
	@echo "make bench-limits    turns at a shared limit beside a plain guarded publish"
	@echo "make bench-payloads  round trips of large payloads beside small ones"
	@echo "make bench-telemetry  throughput with metrics, events and traces on and off"
	@echo "make bench-accounts  throughput with users held to their rights beside a server that lets everybody in"
	@echo "make soak            the live view over 50 peers for ten minutes; fails when anything grows"
	@echo "make docs            write docs/metrics.md from the catalogue of metrics, the dashboards, and the chart's copies"
	@echo "make clean           remove .venv and caches"

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "$(PYTHON) is older than 3.11: make PYTHON=/path/to/newer"; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt \
		--editable '.[local,agents,llm,support,otel,top,auth,dev]'
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
	$(BIN)/pytest -m "not slow" -n $(WORKERS) --dist worksteal

faults: install
	$(BIN)/python -m tests.faults.storm --tasks 100000 --strike-every 150 --within-s 7200
	$(BIN)/python -m tests.faults.storm --cluster --tasks 20000 --strike-every 150 --within-s 7200
	$(BIN)/pytest tests/faults -m slow -n $(WORKERS) --dist worksteal

bench-workflow: install
	$(BIN)/python -m ops.bench.workflow

bench-schedule: install
	$(BIN)/python -m ops.bench.schedule --plot docs/schedule.svg

bench-limits: install
	$(BIN)/python -m ops.bench.limits

bench-payloads: install
	$(BIN)/python -m ops.bench.payloads

bench-telemetry: install
	$(BIN)/python -m ops.bench.telemetry

bench-accounts: install
	$(BIN)/python -m ops.bench.accounts

soak: install
	$(BIN)/python -m ops.soak.top

docs: install
	$(BIN)/python -m ops.docs.metrics
	$(BIN)/python -m ops.grafana.build
	$(BIN)/python -m ops.chart.files

bench: install
	$(BIN)/python -m ops.bench.throughput

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
