"""Who scales an agent, by what, and what an open breaker changes."""

import math
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mesh.bus.topology import of_capability
from mesh.settings import Settings
from mesh.telemetry import catalogue
from tests.chart.cases import CASES, KEDA, PROMETHEUS, rendered
from tests.chart.rendering import BUNDLED, EXTERNAL, Manifest, Values, merged, of_kind, one, render

MONITORED: Values = merged(EXTERNAL, {"nats": {"external": {"monitoring": {"endpoint": "nats.example:8222"}}}})


def scaled(values: Values, name: str = "demo-starling-triage") -> Manifest:
    spec: Manifest = one(render(values), "ScaledObject", name)["spec"]
    return spec


def lags(spec: Manifest) -> dict[tuple[str, str], dict[str, Any]]:
    """The triggers on NATS, by stream and consumer."""
    return {
        (trigger["metadata"]["stream"], trigger["metadata"]["consumer"]): trigger
        for trigger in spec["triggers"]
        if trigger["type"] == "nats-jetstream"
    }


@pytest.mark.parametrize("case", CASES)
def test_an_agent_has_one_scaler_or_none_and_then_says_how_many_itself(case: str) -> None:
    manifests = [*rendered(case)]
    scalers = [
        m["spec"]["scaleTargetRef"]["name"]
        for m in manifests
        if m["kind"] in ("HorizontalPodAutoscaler", "ScaledObject")
    ]

    assert len(scalers) == len(set(scalers))
    for deployment in of_kind(manifests, "Deployment"):
        assert ("replicas" in deployment["spec"]) != (deployment["metadata"]["name"] in scalers)


def test_keda_counts_every_queue_of_every_capability_and_its_fired_timers() -> None:
    values = merged(MONITORED, {"agents": {"triage": {"capabilities": ["triage", "sort_2"], "autoscaling": KEDA}}})

    assert lags(scaled(values)).keys() == {
        (spec.stream, spec.name)
        for capability in ("triage", "sort_2")
        for spec in of_capability(Settings(prefix="mesh"), capability)
        if spec.kind == "consumer"
    }


def test_keda_finds_the_leader_of_a_consumer_by_the_names_of_the_servers() -> None:
    # It puts a server's name, as the routes have it, before the host that it was given.
    values = merged(BUNDLED, {"agents": {"triage": {"autoscaling": KEDA}}})
    endpoints = {t["metadata"]["natsServerMonitoringEndpoint"] for t in lags(scaled(values)).values()}
    manifests = render(values)
    (headless,) = (s for s in of_kind(manifests, "Service") if s["metadata"]["name"] == "demo-starling-nats-headless")
    stateful = one(manifests, "StatefulSet", "demo-starling-nats")

    assert endpoints == {"demo-starling-nats-headless.agents.svc.cluster.local:8222"}
    assert headless["spec"]["clusterIP"] == "None"
    assert stateful["spec"]["serviceName"] == "demo-starling-nats-headless"


@pytest.mark.parametrize(
    ("values", "account"),
    [
        (MONITORED, "MESH"),
        (merged(MONITORED, {"mesh": {"prefix": "shop.eu"}}), "SHOP_EU"),
        (merged(MONITORED, {"nats": {"auth": {"type": "none"}}}), "$G"),
        (merged(MONITORED, {"nats": {"account": "TENANT"}}), "TENANT"),
        (CASES["keda without breakers"], "$G"),
    ],
)
def test_keda_looks_into_the_account_that_holds_the_streams(values: Values, account: str) -> None:
    triggers = lags(scaled(merged(values, {"agents": {"triage": {"autoscaling": KEDA}}})))

    assert {trigger["metadata"]["account"] for trigger in triggers.values()} == {account}


def test_streams_are_named_after_the_prefix() -> None:
    values = merged(MONITORED, {"mesh": {"prefix": "a.mesh"}, "agents": {"triage": {"autoscaling": KEDA}}})
    assert {stream for stream, _ in lags(scaled(values))} == {"A_MESH", "A_MESH_TIMERS@triage"}


def test_without_a_prometheus_breakers_change_nothing() -> None:
    spec = scaled(merged(MONITORED, {"agents": {"triage": {"breakers": ["openai"], "autoscaling": KEDA}}}))

    assert "scalingModifiers" not in spec["advanced"]
    assert {trigger["type"] for trigger in spec["triggers"]} == {"nats-jetstream"}


def test_a_fallback_is_there_only_where_somebody_asked_for_it() -> None:
    # KEDA before 2.17 drops `behavior` and goes down to `replicas` when monitoring is away.
    fallback = {"failureThreshold": 3, "replicas": 1, "behavior": "currentReplicasIfHigher"}
    without = merged(MONITORED, {"agents": {"triage": {"autoscaling": KEDA}}})

    assert "fallback" not in scaled(without)
    assert scaled(merged(without, {"autoscaling": {"keda": {"fallback": fallback}}}))["fallback"] == fallback


BREAKERS = merged(
    MONITORED, {"agents": {"triage": {"breakers": ["openai", "a.b"], "autoscaling": merged(KEDA, PROMETHEUS)}}}
)


def test_breakers_are_asked_for_by_the_names_that_peers_show() -> None:
    spec = scaled(BREAKERS)
    queries = {t["name"]: t["metadata"]["query"] for t in spec["triggers"] if t["type"] == "prometheus"}
    now = r'mesh_breaker_state{namespace="agents",breaker=~"openai|a\\.b",state!="closed"}'

    assert queries == {
        "breakers_open": f"max({now}) or max(last_over_time({now}[30m]))",
        "peers": 'count(mesh_ready{namespace="agents",instance=~"demo-starling-triage-[a-z0-9]+-[a-z0-9]+"})',
    }
    assert catalogue.BREAKER_STATE.name == "mesh_breaker_state"
    assert catalogue.BREAKER_STATE.labels == ("breaker", "state")


def test_a_missing_series_counts_as_zero_and_not_as_an_error() -> None:
    for trigger in scaled(BREAKERS)["triggers"]:
        if trigger["type"] == "prometheus":
            assert trigger["metadata"]["ignoreNullValues"] == "true"


def test_an_agents_own_token_is_the_one_that_its_triggers_use() -> None:
    token = {"keda": {"prometheus": {"existingSecret": "token"}}}
    manifests = render(merged(BREAKERS, {"agents": {"triage": {"autoscaling": token}}}))
    (authentication,) = of_kind(manifests, "TriggerAuthentication")
    (scaler,) = of_kind(manifests, "ScaledObject")

    assert authentication["spec"]["secretTargetRef"] == [{"parameter": "bearerToken", "name": "token", "key": "token"}]
    for trigger in scaler["spec"]["triggers"]:
        if trigger["type"] == "prometheus":
            assert trigger["authenticationRef"] == {"name": authentication["metadata"]["name"]}
            assert trigger["metadata"]["authModes"] == "bearer"


def test_peers_of_another_agent_are_not_counted() -> None:
    query = next(t["metadata"]["query"] for t in scaled(BREAKERS)["triggers"] if t["name"] == "peers")
    found = re.search('instance=~"(.*)"', query)
    assert found

    # Prometheus anchors its expressions at both ends.
    assert re.fullmatch(found[1], "demo-starling-triage-5d4f8c7b9-x2k4q")
    assert not re.fullmatch(found[1], "demo-starling-triage-two-5d4f8c7b9-x2k4q")


def replicas(spec: Manifest, facts: dict[str, float], running: int) -> int:
    """What KEDA and the HPA make of a formula: the composite metric against the target of each peer.

    The HPA does nothing within a tenth of the target; KEDA activates above `activationTarget` and stops below.
    """
    modifiers = spec["advanced"]["scalingModifiers"]
    condition, chosen, other = re.fullmatch(r"float\((.+) \? (.+) : (.+)\)", modifiers["formula"]).groups()  # type: ignore[union-attr]
    known = {"min": min, "max": max, **facts}
    composite = float(eval(chosen if eval(condition, {}, known) else other, {}, known))
    target = float(modifiers["target"])
    if composite <= float(modifiers["activationTarget"]):
        return int(spec["minReplicaCount"])
    if running == 0:
        return max(1, int(spec["minReplicaCount"]))
    if abs(composite / (target * running) - 1.0) <= 0.1:
        return running
    wanted = math.ceil(composite / target)
    return max(1, int(spec["minReplicaCount"]), min(wanted, int(spec["maxReplicaCount"])))


SPEC = scaled(BREAKERS)
LAGS = [trigger["name"] for trigger in SPEC["triggers"] if trigger["type"] == "nats-jetstream"]
lag_facts = st.fixed_dictionaries({name: st.integers(0, 10_000).map(float) for name in LAGS})


@given(lag_facts, st.integers(0, 20))
def test_an_open_breaker_never_makes_more_peers_but_the_first(facts: dict[str, float], running: int) -> None:
    wanted = replicas(SPEC, {**facts, "breakers_open": 1.0, "peers": float(running)}, running)

    assert wanted <= max(running, 1)


@given(lag_facts, st.integers(0, 20), st.booleans())
def test_no_breaker_stops_the_last_peer_while_there_is_work(
    facts: dict[str, float], running: int, is_open: bool
) -> None:
    wanted = replicas(SPEC, {**facts, "breakers_open": float(is_open), "peers": float(running)}, running)

    assert (wanted > 0) == (sum(facts.values()) > 0)


@given(lag_facts, st.integers(1, 20))
def test_a_busy_deployment_stays_as_it_is_under_an_open_breaker(facts: dict[str, float], running: int) -> None:
    busy = {**facts, LAGS[0]: facts[LAGS[0]] + 10.0 * running}

    assert replicas(SPEC, {**busy, "breakers_open": 1.0, "peers": float(running)}, running) == running


@given(lag_facts, st.integers(1, 20))
def test_closed_breakers_leave_the_queue_to_decide(facts: dict[str, float], running: int) -> None:
    wanted = replicas(SPEC, {**facts, "breakers_open": 0.0, "peers": 0.0}, running)
    lag = sum(facts.values())

    assert wanted == running or wanted == (min(20, max(1, math.ceil(lag / 10))) if lag else 0)
