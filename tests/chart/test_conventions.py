"""What users of any chart expect to say, found where Kubernetes reads it."""

from typing import Any

import pytest

from tests.chart.cases import CASES, EVERYTHING, rendered
from tests.chart.rendering import (
    BUNDLED,
    EXTERNAL,
    Manifest,
    Values,
    containers,
    merged,
    of_kind,
    one,
    pods,
    render,
    topology_job,
)

PEER = "demo-starling-triage"


def peer(values: Values) -> Manifest:
    """The Deployment of the agent `triage`."""
    return one(render(values), "Deployment", PEER)


@pytest.mark.parametrize("key", ["nodeSelector", "tolerations", "affinity", "priorityClassName"])
def test_peers_run_where_they_are_told_to(key: str) -> None:
    spec = one([*rendered("external, everything")], "Deployment", PEER)["spec"]["template"]["spec"]

    assert spec[key] == EVERYTHING[key]


@pytest.mark.parametrize("key", ["nodeSelector", "tolerations", "priorityClassName"])
def test_commands_and_servers_run_where_peers_do_unless_told_otherwise(key: str) -> None:
    for case in ("external, everything", "bundled, everything"):
        for at, pod in pods([*rendered(case)]):
            assert pod["spec"][key] == EVERYTHING[key], at

    servers = one([*rendered("servers placed")], "StatefulSet", "demo-starling-nats")["spec"]["template"]["spec"]
    assert servers[key] == CASES["servers placed"]["nats"]["bundled"][key]


def test_a_constraint_spreads_the_pods_of_its_own_agent() -> None:
    constraint = {"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}
    own = {**constraint, "labelSelector": {"matchLabels": {"a": "b"}}}
    spec = peer(merged(EXTERNAL, {"topologySpreadConstraints": [constraint, own]}))["spec"]

    filled, kept = spec["template"]["spec"]["topologySpreadConstraints"]
    assert filled == {**constraint, "labelSelector": spec["selector"]}
    assert kept == own


def test_every_pod_has_the_registrys_secrets_and_ours_its_registry() -> None:
    for case in ("external, everything", "bundled, everything"):
        for at, pod in pods([*rendered(case)]):
            assert pod["spec"]["imagePullSecrets"] == [{"name": "pull-me"}, {"name": "me-too"}], at
            for container in containers(pod):
                registry = "docker.io/" if container["name"] in ("nats", "exporter") else "registry.example:5000/"
                assert container["image"].startswith(registry), at


def test_variables_come_from_where_they_are_said() -> None:
    container = containers(one([*rendered("external, everything")], "Deployment", PEER)["spec"]["template"])[0]
    variables = {variable["name"]: variable for variable in container["env"]}

    assert {"configMapRef": {"name": "more"}} in container["envFrom"]
    assert variables["TZ"]["value"] == "UTC"
    assert variables["BILLING_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "billing.keys", "key": "key"}}
    assert variables["MESH_LLM_API_KEY"]["valueFrom"] == {"secretKeyRef": {"name": "llm", "key": "api-key"}}


def test_volumes_containers_and_objects_of_ones_own_are_added() -> None:
    manifests = [*rendered("external, everything")]
    pod = one(manifests, "Deployment", PEER)["spec"]["template"]["spec"]
    beside = one([*rendered("beside the peer")], "Deployment", PEER)["spec"]["template"]["spec"]

    assert {"name": "models", "emptyDir": {}} in pod["volumes"]
    assert {"name": "models", "mountPath": "/models"} in pod["containers"][0]["volumeMounts"]
    assert [container["name"] for container in beside["containers"]] == ["peer", "beside"]
    assert [container["name"] for container in beside["initContainers"]] == ["fetch-demo"]
    assert {"demo-more", "demo-text"} <= {m["metadata"]["name"] for m in of_kind(manifests, "ConfigMap")}


def test_annotations_and_labels_are_where_other_tools_look_for_them() -> None:
    manifests = [*rendered("external, everything")]
    deployment = one(manifests, "Deployment", PEER)
    pod = deployment["spec"]["template"]["metadata"]

    assert EVERYTHING["annotations"].items() <= deployment["metadata"]["annotations"].items()
    assert EVERYTHING["labels"].items() <= deployment["metadata"]["labels"].items()
    assert EVERYTHING["podAnnotations"].items() <= pod["annotations"].items()
    assert EVERYTHING["podLabels"].items() <= pod["labels"].items()
    for manifest in manifests:
        if manifest["metadata"]["name"] not in ("demo-more", "demo-text"):
            at = manifest["metadata"]["name"]
            assert EVERYTHING["commonAnnotations"].items() <= manifest["metadata"]["annotations"].items(), at
            assert EVERYTHING["commonLabels"].items() <= manifest["metadata"]["labels"].items(), at


@pytest.mark.parametrize(
    ("change", "rolls"),
    [
        ({"mesh": {"logLevel": "DEBUG"}}, True),
        ({"mesh": {"settings": {"MESH_BEAT_S": 3}}}, True),
        ({"test": {"capability": "triage"}}, False),
        ({"commonAnnotations": {"a": "b"}}, False),
    ],
)
def test_a_changed_setting_starts_the_peers_anew_and_nothing_else_does(change: dict[str, Any], rolls: bool) -> None:
    before, after = (peer(values)["spec"]["template"] for values in (EXTERNAL, merged(EXTERNAL, change)))

    assert (before != after) is rolls


def test_what_selects_pods_is_the_same_for_every_version_of_the_values() -> None:
    changed = merged(BUNDLED, {key: EVERYTHING[key] for key in ("commonLabels", "labels", "podLabels", "image")})
    for kind in ("Deployment", "StatefulSet"):
        (before,), (after,) = (of_kind(render(values), kind) for values in (BUNDLED, changed))

        assert before["spec"]["selector"] == after["spec"]["selector"]
        assert before["spec"].get("volumeClaimTemplates") == after["spec"].get("volumeClaimTemplates")


def test_names_are_resolved_at_the_ports_that_the_resolver_has() -> None:
    manifests = render(merged(BUNDLED, {"networkPolicy": {"dns": {"ports": [53, 5353]}}}))
    for name in ("demo-starling-mesh", "demo-starling-nats"):
        ports = one(manifests, "NetworkPolicy", name)["spec"]["egress"][0]["ports"]

        assert {(port["port"], port["protocol"]) for port in ports} == {
            (53, "UDP"), (53, "TCP"), (5353, "UDP"), (5353, "TCP"),
        }  # fmt: skip


def test_a_budget_lets_one_peer_go_unless_told_otherwise() -> None:
    said = one([*rendered("budget by share")], "PodDisruptionBudget", PEER)["spec"]

    assert one([*rendered("external")], "PodDisruptionBudget", PEER)["spec"]["maxUnavailable"] == 1
    assert (said["minAvailable"], "maxUnavailable" in said) == ("50%", False)
    assert of_kind([*rendered("little")], "PodDisruptionBudget") == []


def test_a_job_of_the_release_waits_for_no_service_account() -> None:
    # A Job that starts before its account would be tried again; none of them needs one.
    assert "serviceAccountName" not in topology_job(render(BUNDLED))["spec"]["template"]["spec"]
