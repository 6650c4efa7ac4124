"""What holds for every pod that the chart makes, hooks and tests included, whatever options are on."""

import re
from collections.abc import Iterator
from typing import Any

import pytest

from tests.chart.cases import CASES, rendered
from tests.chart.rendering import Manifest, containers, of_kind, pods, render

STANDARD = {"app.kubernetes.io/name", "app.kubernetes.io/instance", "app.kubernetes.io/managed-by"}
ON_THE_HOST = ("hostNetwork", "hostPID", "hostIPC", "hostAliases", "hostUsers")
HARMLESS_VALUES = re.compile(r"MESH_[A-Z_]+|TZ|GOMEMLIMIT|POD_NAME")


@pytest.fixture(params=CASES)
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    return [*rendered(request.param)]


def every_container(manifests: list[Manifest]) -> Iterator[tuple[str, Manifest]]:
    for at, pod in pods(manifests):
        for container in containers(pod):
            yield f"{at}/{container['name']}", container


def test_no_pod_runs_as_root_or_without_a_seccomp_profile(manifests: list[Manifest]) -> None:
    for at, pod in pods(manifests):
        context = pod["spec"]["securityContext"]

        assert context["runAsNonRoot"] is True, at
        assert context["runAsUser"] == context["runAsGroup"] == 10001, at
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, at
        assert not any(pod["spec"].get(field) for field in ON_THE_HOST), at


def test_no_container_may_write_to_its_image_or_gain_rights(manifests: list[Manifest]) -> None:
    for at, container in every_container(manifests):
        context = container["securityContext"]

        assert context["allowPrivilegeEscalation"] is False, at
        assert context["readOnlyRootFilesystem"] is True, at
        assert context["runAsNonRoot"] is True, at
        assert context["capabilities"] == {"drop": ["ALL"]}, at
        assert "privileged" not in context, at


def test_every_container_says_what_it_needs_and_what_it_may_use(manifests: list[Manifest]) -> None:
    for at, container in every_container(manifests):
        resources = container["resources"]

        assert {"cpu", "memory"} <= resources["requests"].keys(), at
        assert {"cpu", "memory"} <= resources["limits"].keys(), at


def test_no_pod_is_given_a_token_of_the_cluster(manifests: list[Manifest]) -> None:
    for at, pod in pods(manifests):
        assert pod["spec"]["automountServiceAccountToken"] is False, at
        assert pod["spec"]["enableServiceLinks"] is False, at
    for account in of_kind(manifests, "ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    assert not of_kind(manifests, "Role") + of_kind(manifests, "ClusterRole")


def test_every_image_has_a_version(manifests: list[Manifest]) -> None:
    for at, container in every_container(manifests):
        name, at_sign, digest = container["image"].partition("@")
        tag = name.rpartition("/")[2].partition(":")[2]

        assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest) if at_sign else tag, at
        assert tag != "latest", at


def test_what_listens_is_probed(manifests: list[Manifest]) -> None:
    for at, container in every_container(manifests):
        if container.get("ports"):
            assert "livenessProbe" in container, at
        if container["name"] in ("peer", "nats"):
            assert {"startupProbe", "readinessProbe", "livenessProbe"} <= container.keys(), at
        named = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            action: dict[str, Any] = container.get(probe, {})
            for kind in ("httpGet", "tcpSocket"):
                assert action.get(kind, {}).get("port", None) in {None, *named}, at


def test_nothing_secret_stands_in_a_manifest(manifests: list[Manifest]) -> None:
    assert not of_kind(manifests, "Secret")
    for at, container in every_container(manifests):
        for variable in container.get("env", []):
            if "value" in variable:
                assert HARMLESS_VALUES.fullmatch(variable["name"]), at
                assert not re.search("PASSWORD|TOKEN|API_KEY", variable["name"]), at
    for config in of_kind(manifests, "ConfigMap"):
        assert not any(re.search("PASSWORD|TOKEN|API_KEY|SEED", key) for key in config.get("data", {}))


def test_secrets_are_files_that_the_pods_group_alone_may_read(manifests: list[Manifest]) -> None:
    for at, pod in pods(manifests):
        for volume in pod["spec"].get("volumes", []):
            for kind in ("secret", "projected"):
                if kind in volume:
                    assert volume[kind]["defaultMode"] == 0o440, at
        assert pod["spec"]["securityContext"]["fsGroup"] == 10001, at


def test_every_object_says_what_it_belongs_to(manifests: list[Manifest]) -> None:
    for manifest in manifests:
        if manifest["metadata"]["name"] in ("demo-more", "demo-text"):
            continue
        assert manifest["metadata"]["labels"].keys() >= STANDARD, manifest["metadata"]["name"]
        assert manifest["metadata"]["namespace"] == "agents"
    for at, pod in pods(manifests):
        assert pod["metadata"]["labels"].keys() >= STANDARD, at


def test_selectors_find_their_own_pods_and_no_others(manifests: list[Manifest]) -> None:
    labels = {at: pod["metadata"]["labels"] for at, pod in pods(manifests)}
    for manifest in manifests:
        at = f"{manifest['kind']}/{manifest['metadata']['name']}"
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            wanted = manifest["spec"]["selector"]["matchLabels"]
            assert [pod for pod in labels if wanted.items() <= labels[pod].items()] == [at]
        if manifest["kind"] in ("PodDisruptionBudget", "Service"):
            selector = manifest["spec"]["selector"]
            wanted = selector.get("matchLabels", selector)
            assert len([pod for pod in labels if wanted.items() <= labels[pod].items()]) == 1, at


def test_every_port_that_is_named_is_one_that_the_pods_have(manifests: list[Manifest]) -> None:
    services = of_kind(manifests, "Service")
    for manifest in services + of_kind(manifests, "NetworkPolicy"):
        spec = manifest["spec"]
        selector = spec["podSelector"] if "podSelector" in spec else {"matchLabels": spec["selector"]}
        ports = [port["targetPort"] for port in spec.get("ports", [])]
        ports += [port["port"] for rule in spec.get("ingress", []) for port in rule.get("ports", [])]
        for at, pod in pods(manifests):
            if selects(selector, pod["metadata"]["labels"]):
                known = {port["name"] for container in containers(pod) for port in container.get("ports", [])}
                assert {port for port in ports if isinstance(port, str)} <= known, (manifest["metadata"]["name"], at)
    for monitor in of_kind(manifests, "ServiceMonitor"):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        (service,) = (s for s in services if wanted <= s["metadata"]["labels"].items())
        assert monitor["spec"]["endpoints"][0]["port"] in {port["name"] for port in service["spec"]["ports"]}


def test_a_volume_is_mounted_where_it_is_and_is_where_it_is_mounted(manifests: list[Manifest]) -> None:
    for at, pod in pods(manifests):
        volumes = {volume["name"] for volume in pod["spec"].get("volumes", [])}
        claims = {"data"} if at.startswith("StatefulSet/") else set()
        mounted = {mount["name"] for c in containers(pod) for mount in c.get("volumeMounts", [])}

        assert mounted == volumes | claims, at


@pytest.mark.parametrize("case", [name for name in CASES if name != "little"])
def test_nothing_passes_but_what_a_policy_names(case: str) -> None:
    manifests = [*rendered(case)]
    policies = [policy["spec"] for policy in of_kind(manifests, "NetworkPolicy")]
    for at, pod in pods(manifests):
        held = [spec for spec in policies if selects(spec["podSelector"], pod["metadata"]["labels"])]
        denied = [spec for spec in held if "ingress" not in spec and "egress" not in spec]

        assert denied, f"{at}: no policy denies what others do not name"
        assert denied[0]["policyTypes"] == ["Ingress", "Egress"]
        ports = {
            port["port"]
            for spec in held
            for rule in spec.get("egress", [])
            for port in rule.get("ports", [{"port": 0}])
        }
        assert 53 in ports, f"{at}: cannot resolve names"
        assert 0 not in ports, f"{at}: may go out on any port"
        assert not {4222, 4223}.isdisjoint(ports) or at.startswith("StatefulSet/"), f"{at}: cannot reach NATS"


def test_peers_are_reached_by_who_scrapes_them_and_by_nobody_else() -> None:
    manifests = render(CASES["bundled"])
    peer = next(pod for at, pod in pods(manifests) if at.startswith("Deployment/"))
    allowed = [
        rule
        for policy in of_kind(manifests, "NetworkPolicy")
        if selects(policy["spec"]["podSelector"], peer["metadata"]["labels"])
        for rule in policy["spec"].get("ingress", [])
    ]

    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert allowed == [{"from": [monitoring], "ports": [{"port": "http", "protocol": "TCP"}]}]


def test_only_the_mesh_reaches_the_bundled_nats_and_only_keda_and_the_doctor_its_monitoring() -> None:
    (policy,) = (
        p for p in of_kind(render(CASES["bundled"]), "NetworkPolicy") if p["metadata"]["name"].endswith("nats")
    )
    by_port = {rule["ports"][0]["port"]: rule["from"] for rule in policy["spec"]["ingress"]}

    assert by_port.keys() == {"client", "cluster", "monitor", "metrics"}
    components = [
        expression["values"]
        for peer in by_port["monitor"]
        if "podSelector" in peer
        for expression in peer["podSelector"]["matchExpressions"]
    ]
    assert components == [["doctor"]]
    assert [p["namespaceSelector"]["matchLabels"] for p in by_port["monitor"] if "namespaceSelector" in p] == [
        {"kubernetes.io/metadata.name": "keda"}
    ]
    assert all(set(source) == {"podSelector"} for source in by_port["client"] + by_port["cluster"])


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a label selector of Kubernetes finds these labels; of operators it knows `In`."""
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        expression["operator"] == "In" and labels.get(expression["key"]) in expression["values"]
        for expression in selector.get("matchExpressions", [])
    )
