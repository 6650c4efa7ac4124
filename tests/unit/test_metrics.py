"""What is counted: bounded labels, exemplars, and numbers that a scrape may read at any time."""

from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.core import Metric as Shown
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from contracts.event import CLIENT
from contracts.outcome import DecidedBy, Outcome, Spent, Status
from contracts.task import Task
from mesh.telemetry import catalogue
from mesh.telemetry.catalogue import CALLERS_MAX, CHOICES_MAX, DIGESTS_MAX, NAMES_MAX, OTHERS
from mesh.telemetry.cells import Distribution, Distributions
from mesh.telemetry.metrics import CapabilityMetrics, Metrics

ME = DecidedBy(agent="desk", version="1")


def answered(metrics: CapabilityMetrics, *lineage: str, **told: Any) -> None:
    outcome = Outcome(status=told.pop("status", Status.DONE), **told)
    metrics.answered(outcome, commit_s=0.001, caller=Task(lineage=lineage).caller)


def labels_of(metrics: Metrics, name: str, label: str) -> set[str]:
    return {
        sample.labels[label]
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == name
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def test_a_histogram_shows_what_the_librarys_own_shows() -> None:
    values = [0.0, 0.0005, 0.001, 0.0011, 0.3, 9.99, 10.0, 10.1, 1e9, 7200.0, 7200.1]
    ours = Distributions(catalogue.QUEUE_S, lambda: Distribution(catalogue.QUEUE_S.buckets))
    registry = CollectorRegistry()
    theirs = Histogram(
        catalogue.QUEUE_S.name, "x", ["capability"], buckets=catalogue.QUEUE_S.buckets, registry=registry
    ).labels("a")

    for one in values:
        ours.of("a").observe(one)
        theirs.observe(one)

    shown = {(sample.name, sample.labels.get("le")): sample.value for sample in ours.shown().samples}
    for name, le in shown:
        labels = {"capability": "a"} | ({"le": le} if le is not None else {})
        assert shown[name, le] == registry.get_sample_value(name, labels)
    assert len(shown) == len(catalogue.QUEUE_S.buckets) + 3


def test_a_task_is_counted_with_everything_its_outcome_tells() -> None:
    metrics = Metrics()
    counted = metrics.of("triage", ME)
    decided = DecidedBy(agent="desk", version="1", model_digest="m", prompt_digest="p")

    spent = Spent(tokens_in=10, tokens_out=3, usd=0.25)
    answered(counted, confidence=0.55, spent=spent, decided_by=decided, queue_s=0.2, run_s=3.0)
    answered(counted, "-", "desk", status=Status.EXPIRED)

    assert value(metrics, "mesh_tasks_total", capability="triage", version="1", status="done") == 1
    assert value(metrics, "mesh_tasks_total", capability="triage", version="1", status="expired") == 1
    assert value(metrics, "mesh_deadline_misses_total", capability="triage") == 1
    assert value(metrics, "mesh_calls_total", capability="triage", caller=CLIENT) == 1
    assert value(metrics, "mesh_calls_total", capability="triage", caller="desk") == 1
    assert value(metrics, "mesh_tokens_total", capability="triage", direction="in") == 10
    assert value(metrics, "mesh_tokens_total", capability="triage", direction="out") == 3
    assert value(metrics, "mesh_cost_usd_total", capability="triage") == 0.25
    assert value(metrics, "mesh_confidence_count", capability="triage") == 1
    assert value(metrics, "mesh_confidence_bucket", capability="triage", le="0.5") == 0
    assert value(metrics, "mesh_confidence_bucket", capability="triage", le="0.6") == 1
    assert value(metrics, "mesh_task_run_seconds_sum", capability="triage") == 3.0
    for what, digest in (("model", "m"), ("prompt", "p")):
        labels = {"capability": "triage", "version": "1", "what": what, "digest": digest}
        assert value(metrics, "mesh_digest_info", **labels) == 1


@pytest.mark.parametrize("usd", [float("nan"), float("inf"), -1.0])
def test_a_cost_that_makes_no_sense_is_left_out_of_the_sum(usd: float) -> None:
    metrics = Metrics()
    counted = metrics.of("triage", ME)

    answered(counted, spent=Spent(usd=1.0))
    answered(counted, spent=Spent(usd=usd, tokens_in=-7))

    assert value(metrics, "mesh_cost_usd_total", capability="triage") == 1.0
    assert value(metrics, "mesh_tokens_total", capability="triage", direction="in") == 0


def test_digests_of_whoever_answered_instead_are_not_the_agents_own() -> None:
    metrics = Metrics()
    counted = metrics.of("triage", ME)

    answered(counted, decided_by=DecidedBy(agent="specialist", version="1", model_digest="big"))

    assert labels_of(metrics, "mesh_digest_info", "digest") == set()


def test_only_the_digests_used_last_are_shown() -> None:
    metrics = Metrics()
    counted = metrics.of("triage", ME)

    for number in range(1_000):
        counted.decided("yes", model_digest=f"m{number}", prompt_digest="p" * 500)

    found = labels_of(metrics, "mesh_digest_info", "digest")
    assert found == {*(f"m{number}" for number in range(1_000 - DIGESTS_MAX, 1_000)), "p" * 80}


def test_choices_past_the_first_ones_are_counted_together() -> None:
    metrics = Metrics()
    counted = metrics.of("triage", ME)

    for number in range(1_000):
        counted.decided(f"choice {number}", 0.5)
        counted.decided("choice 3")

    found = labels_of(metrics, "mesh_decisions_total", "choice")
    assert len(found) == CHOICES_MAX + 1
    assert value(metrics, "mesh_decisions_total", capability="triage", choice="choice 3") == 1_001
    assert value(metrics, "mesh_decisions_total", capability="triage", choice=OTHERS) == 1_000 - CHOICES_MAX
    assert value(metrics, "mesh_decision_confidence_count", capability="triage") == 1_000


def test_callers_past_the_first_pairs_are_counted_together() -> None:
    metrics = Metrics()
    one, other = metrics.of("one", ME), metrics.of("other", ME)

    for number in range(1_000):
        answered(one, f"caller-{number}")
        answered(other, f"caller-{number}")
        answered(one)

    series = [
        sample for family in metrics.registry.collect() if family.name == "mesh_calls" for sample in family.samples
    ]
    assert len(series) == CALLERS_MAX + 3
    assert sum(sample.value for sample in series) == 3_000
    assert value(metrics, "mesh_calls_total", capability="one", caller=CLIENT) == 1_000


@pytest.mark.parametrize("caller", ["order-42.~child", "x" * 64, "a b", "(client)", "\ud800"])
def test_a_caller_that_names_no_capability_has_no_series_of_its_own(caller: str) -> None:
    metrics = Metrics()

    answered(metrics.of("triage", ME), caller)

    assert labels_of(metrics, "mesh_calls_total", "caller") == {OTHERS}


def test_breakers_and_resources_past_the_first_ones_are_counted_together() -> None:
    metrics = Metrics()

    for number in range(1_000):
        breaker = metrics.breaker(f"breaker-{number}")
        breaker.called("ok")
        breaker.refused.inc()
        breaker.changed("open")
        metrics.limits.granted(f"resource-{number}", 0.1)
        metrics.limits.refused(f"resource-{number}")

    for name in ("calls", "refused", "transitions"):
        assert len(labels_of(metrics, f"mesh_breaker_{name}_total", "breaker")) == NAMES_MAX + 1
    for name in ("granted_total", "refused_total", "wait_seconds_count"):
        assert len(labels_of(metrics, f"mesh_limit_{name}", "resource")) == NAMES_MAX + 1


def test_a_histogram_carries_the_trace_of_what_was_observed() -> None:
    metrics = Metrics()
    counted = metrics.of("triage", ME)

    answered(counted, run_s=0.002)
    metrics.exemplar = lambda: {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
    answered(counted, run_s=7.0)
    metrics.exemplar = lambda: None
    answered(counted, run_s=7.0)

    text = generate_openmetrics(metrics.registry).decode()
    found = {
        (sample.name, sample.labels["le"]): sample.exemplar
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.exemplar is not None
    }
    run = found["mesh_task_run_seconds_bucket", "10.0"]
    assert (run.labels, run.value) == ({"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}, 7.0)
    assert {name for name, _ in found} == {f"mesh_task_{what}_seconds_bucket" for what in ("queue", "run", "commit")}


def test_what_cannot_be_encoded_does_not_take_the_scrape_with_it() -> None:
    metrics = Metrics()

    metrics.of("triage", ME).decided('half a \ud83d pair\n"quoted"', model_digest="\udfff")

    text = generate_latest(metrics.registry).decode()
    assert 'choice="half a ? pair\\n\\"quoted\\""' in text


def test_switched_off_nothing_is_counted_and_what_is_watched_is_shown() -> None:
    metrics = Metrics(is_on=False)
    metrics.watch(lambda: [GaugeMetricFamily("mesh_ready", "x", value=1)])
    counted = metrics.of("triage", ME)

    answered(counted, "desk", spent=Spent(usd=1.0), confidence=0.3, decided_by=ME)
    counted.decided("yes", model_digest="m")
    counted.worked(handler_s=1.0, mesh_s=1.0)
    counted.redeliveries.inc()
    counted.bid_to_start_s.observe(1.0)
    counted.handed_back("draining")
    metrics.breaker("openai").called("ok")
    metrics.limits.granted("openai", 1.0)

    assert [family.name for family in metrics.registry.collect()] == ["mesh_ready"]
    assert counted.redeliveries.value == 0


def test_what_changes_while_it_is_read_is_read_again() -> None:
    metrics, tries = Metrics(is_on=False), 0

    def read() -> Iterator[Shown]:
        nonlocal tries
        tries += 1
        yield GaugeMetricFamily("mesh_ready", "x", value=tries)
        if tries < 3:
            raise RuntimeError("dictionary changed size during iteration")

    metrics.watch(read)

    assert metrics.registry.get_sample_value("mesh_ready") == 3


def test_a_capability_asked_for_again_is_the_same() -> None:
    metrics = Metrics()

    assert metrics.of("triage", ME) is metrics.of("triage", DecidedBy(agent="desk", version="1"))
