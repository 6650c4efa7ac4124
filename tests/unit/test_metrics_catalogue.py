"""The catalogue says what is exported, and the page says what the catalogue says."""

import pytest

from contracts.event import EventKind
from mesh.resilience.breaker import How, State
from mesh.runtime.offering import Idle
from mesh.runtime.verdict import Reason
from mesh.scheduling.lanes import ORDER
from mesh.telemetry import catalogue
from mesh.telemetry.catalogue import CATALOGUE, LABELS, Metric
from ops.docs.metrics import PAGE, page


@pytest.mark.parametrize("metric", CATALOGUE, ids=lambda metric: metric.name)
def test_each_metric_is_named_and_told_of_as_prometheus_has_it(metric: Metric) -> None:
    assert metric.name.startswith("mesh_")
    assert metric.name.endswith("_total") == (metric.type == "counter")
    assert bool(metric.buckets) == (metric.type == "histogram")
    assert list(metric.buckets) == sorted(set(metric.buckets))
    assert metric.meaning.endswith(".")
    assert metric.question.endswith(("?", "handler)."))
    assert set(metric.labels) <= set(LABELS)
    assert set(metric.values) <= set(metric.labels)
    assert not {"id", "task", "peer", "key"} & set(metric.labels)


def test_no_two_metrics_share_a_name() -> None:
    names = [metric.name for metric in CATALOGUE]

    assert len(names) == len(set(names))
    assert {label for metric in CATALOGUE for label in metric.labels} == set(LABELS)


def test_closed_sets_of_labels_are_those_of_the_code() -> None:
    assert set(catalogue.HANDED_BACK.values["reason"]) == set(Reason)
    assert set(catalogue.BREAKER_STATE.values["state"]) == set(State)
    assert set(catalogue.BREAKER_TRANSITIONS.values["to"]) == set(State)
    assert set(catalogue.BREAKER_CALLS.values["how"]) == set(How)
    assert set(catalogue.IDLE_SLOTS.values["why"]) == set(Idle)
    assert set(catalogue.QUEUE_TASKS.values["lane"]) == {lane or "normal" for lane in ORDER}
    assert set(catalogue.EVENTS.values["kind"]) == set(EventKind)


def test_the_page_about_metrics_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python -m ops.docs.metrics"
