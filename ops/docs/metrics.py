"""The page about metrics, made from their catalogue.

    python -m ops.docs.metrics

writes `docs/metrics.md`; a test says when it is out of date.
"""

from pathlib import Path

from mesh.telemetry.catalogue import CATALOGUE, LABELS, Group, Metric

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"

HEAD = """\
# Metrics

<!-- Made by `python -m ops.docs.metrics` from mesh/telemetry/catalogue.py: change that, then run this. -->

Every peer serves its metrics at `/metrics` (`MESH_HTTP_HOST`, `MESH_HTTP_PORT`), in Prometheus' text format or, asked
for it, in OpenMetrics. `mesh agents` shows the addresses. Names of units are in the names; histograms have `_bucket`,
`_sum` and `_count` series. A scrape reads numbers that stand already: it asks no server, and a handler that blocks the
event loop does not hold it up.

- **Counters and histograms** tell what this peer did. Add them up over peers: `sum by (capability)`.
- **Gauges of a peer** tell what it is doing now.
- **Gauges of the mesh** tell what this peer saw at its last look, every `MESH_SURVEY_S` (10 s, give or take a quarter).
  Every peer that serves a capability shows the same: use `max by`, never `sum`. What the server has to count (parked
  tasks, dead letters, tasks that nobody serves, the inbox) is asked for the more seldom the longer it takes; a large
  fleet with hundreds of thousands of tasks asks every ten minutes. While the server does not answer they vanish after
  some looks, and `mesh_survey_age_seconds` grows.
- **Exemplars.** Where tasks are traced, the time histograms carry the last trace id of each bucket; only OpenMetrics
  shows them (Prometheus: `--enable-feature=exemplar-storage`).
- **Off.** With `MESH_METRICS=0` nothing is counted: counters and histograms are gone, gauges stay.

No label holds an id. What a submitter or a handler makes up is bounded, as the labels say below.
"""


def page() -> str:
    """The whole page."""
    groups = [_group(group) for group in Group]
    return "\n".join([HEAD, *groups, _labels()])


def _group(group: Group) -> str:
    rows = [_row(metric) for metric in CATALOGUE if metric.group is group]
    return "\n".join([f"## {group}", "", "| metric | what it is | answers |", "|---|---|---|", *rows, ""])


def _row(metric: Metric) -> str:
    labels = f"{{{','.join(metric.labels)}}}" if metric.labels else ""
    told = [metric.meaning]
    for label, values in metric.values.items():
        told.append(f"{label}: {', '.join(f'`{value}`' for value in values)}.")
    if metric.buckets:
        told.append(f"Buckets: {', '.join(f'{bound:g}' for bound in metric.buckets)}.")
    return f"| `{metric.name}{labels}` ({metric.type}) | {' '.join(told)} | {metric.question} |"


def _labels() -> str:
    lines = ["## Labels", "", "| label | |", "|---|---|"]
    lines += [f"| `{name}` | {meaning} |" for name, meaning in LABELS.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    PAGE.write_text(page())
    print(f"{PAGE.name}: {len(CATALOGUE)} metrics")
