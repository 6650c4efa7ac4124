"""Hooks, the test pod and the notes: what runs, when, and as whom."""

import json
import shlex

import pytest
from typer.testing import CliRunner

from mesh.cli.main import app
from tests.chart.cases import CASES, agent, rendered
from tests.chart.rendering import (
    BUNDLED,
    EXTERNAL,
    Manifest,
    Values,
    containers,
    merged,
    notes,
    of_kind,
    one,
    render,
    topology_job,
)


def hook(manifest: Manifest) -> tuple[str, int]:
    """When a hook runs, and its place among those that run then."""
    annotations = manifest["metadata"]["annotations"]
    return annotations["helm.sh/hook"], int(annotations.get("helm.sh/hook-weight", "0"))


def variables(manifest: Manifest) -> dict[str, str]:
    pod = manifest["spec"].get("template", manifest)
    return {v["name"]: v.get("value", "") for c in containers(pod) for v in c["env"]}


def test_with_a_nats_outside_the_streams_are_made_and_judged_before_anything_starts() -> None:
    manifests = [*rendered("external")]
    when = "pre-install,pre-upgrade"

    assert hook(one(manifests, "Job", "demo-starling-topology")) == (when, -10)
    assert hook(one(manifests, "Job", "demo-starling-doctor")) == (when, -5)
    # Or a namespace that denies everything would not let them out.
    assert hook(one(manifests, "NetworkPolicy", "demo-starling-hooks")) == (when, -20)


def test_hooks_before_the_release_need_nothing_of_it() -> None:
    manifests = [*rendered("external, everything")]
    for manifest in manifests:
        if "pre-install" not in manifest["metadata"].get("annotations", {}).get("helm.sh/hook", ""):
            continue
        if manifest["kind"] == "Job":
            pod = manifest["spec"]["template"]["spec"]
            assert "serviceAccountName" not in pod
            assert all("envFrom" not in container for container in pod["containers"])
            assert not any("configMap" in volume for volume in pod["volumes"])
            shared = one(manifests, "ConfigMap", "demo-starling")["data"]
            assert shared.items() <= variables(manifest).items()


def test_with_its_own_nats_the_streams_are_made_while_the_peers_wait() -> None:
    # As a hook after the install it would wait for peers that wait for it, under `helm install --wait`.
    job = topology_job([*rendered("bundled")])

    assert "annotations" not in job["metadata"]
    assert hook(one([*rendered("bundled")], "Job", "demo-starling-doctor")) == ("post-install,post-upgrade", -5)


def test_a_job_of_the_release_is_another_one_for_another_revision_and_for_another_pod() -> None:
    # Kubernetes lets nobody change a Job's pod, and what only renders the chart (Argo CD) counts no revisions.
    changes: list[tuple[Values, int]] = [
        ({}, 1),
        ({}, 7),
        ({"image": {"tag": "2"}}, 1),
        ({"mesh": {"logLevel": "DEBUG"}}, 1),
        ({"commonLabels": {"team": "a"}}, 1),
        ({"topology": {"withCare": True}}, 1),
    ]
    names = [topology_job(render(merged(BUNDLED, values), revision=of))["metadata"]["name"] for values, of in changes]

    assert len(set(names)) == len(names)
    assert names[0] == topology_job(render(BUNDLED))["metadata"]["name"]
    assert [name.rpartition("-")[0] for name in names[:2]] == ["demo-starling-topology-1", "demo-starling-topology-7"]


def test_no_name_is_longer_than_kubernetes_takes() -> None:
    long = render({"nats": BUNDLED["nats"], "fullnameOverride": "f" * 44}, revision=999)

    # What a name of a Job and of a Service may have, and of a StatefulSet with the hash that comes behind it.
    longest = {"Job": 63, "Service": 63, "StatefulSet": 52}
    for manifest in long:
        assert len(manifest["metadata"]["name"]) <= longest.get(manifest["kind"], 253), manifest["kind"]


def test_pods_of_commands_have_what_other_tools_want_of_them() -> None:
    said: Values = {"podAnnotations": {"sidecar.istio.io/inject": "false"}, "podLabels": {"cost": "agents"}}
    manifests = render(merged(EXTERNAL, {"jobs": said, "test": {"capability": "triage"}}))

    commands = [job["spec"]["template"] for job in of_kind(manifests, "Job")] + of_kind(manifests, "Pod")
    assert len(commands) == 3
    for command in commands:
        assert said["podAnnotations"].items() <= command["metadata"]["annotations"].items()
        assert said["podLabels"].items() <= command["metadata"]["labels"].items()
    assert hook(commands[-1])[0] == "test"


def test_the_doctor_can_be_kept_out_of_upgrades() -> None:
    assert hook(one([*rendered("doctor at installs")], "Job", "demo-starling-doctor")) == ("pre-install", -5)


def test_hooks_are_operators_and_the_test_is_a_client() -> None:
    manifests = render(merged(BUNDLED, {"test": {"capability": "triage"}}))
    topology = topology_job(manifests)["metadata"]["name"]
    users = {
        name: (variables(one(manifests, kind, name))["MESH_NATS_INBOX_PREFIX"], seed(one(manifests, kind, name)))
        for kind, name in (
            ("Job", topology),
            ("Job", "demo-starling-doctor"),
            ("Pod", "demo-starling-test"),
            ("Deployment", "demo-starling-triage"),
        )
    }

    assert users == {
        topology: ("_INBOX_ops", "demo-user-ops"),
        "demo-starling-doctor": ("_INBOX_ops", "demo-user-ops"),
        "demo-starling-test": ("_INBOX_probe", "demo-user-probe"),
        "demo-starling-triage": ("_INBOX_triage", "demo-user-triage"),
    }


def seed(manifest: Manifest) -> str:
    pod = manifest["spec"].get("template", manifest)
    return next(v["secret"]["secretName"] for v in pod["spec"]["volumes"] if v["name"] == "nats-user")


def topology(values: Values) -> list[str]:
    args: list[str] = topology_job(render(values))["spec"]["template"]["spec"]["containers"][0]["args"]
    return args


def test_streams_are_made_for_what_the_targets_handle() -> None:
    several = {"agents": {"triage": agent(), "b": agent(targets=["my_agents.triage", "b.py"], capabilities=[])}}

    # In the order of the agents' names, each once.
    assert topology(merged(EXTERNAL, several)) == ["topology", "apply", "my_agents.triage", "b.py"]


def test_of_agents_in_images_of_their_own_the_names_are_enough() -> None:
    assert topology(CASES["external, several"]) == [
        "topology", "apply", "my_agents.triage", "my_agents.writer:agent", "more.py",
        "--capability", "report", "--capability", "wheel",
    ]  # fmt: skip


def test_helm_test_submits_the_payload_as_json_and_waits() -> None:
    pod = one([*rendered("external, everything")], "Pod", "demo-starling-test")
    args = containers(pod)[0]["args"]

    assert hook(pod)[0] == "test"
    assert args[:2] == ["submit", "triage"]
    assert json.loads(args[2]) == {"text": 'it\'s "broken"'}
    assert args[3:] == ["--within-s", "30"]
    assert pod["spec"]["activeDeadlineSeconds"] > 30


@pytest.mark.parametrize("case", CASES)
def test_every_command_is_one_that_the_program_has(case: str) -> None:
    manifests = [*rendered(case)]
    jobs = [m["spec"]["template"] for m in manifests if m["kind"] in ("Job", "Deployment")]
    for pod in jobs + of_kind(manifests, "Pod"):
        container = next(c for c in containers(pod) if c["name"] in ("peer", "topology", "doctor", "submit"))
        assert_known([*container["args"]])
        if "lifecycle" in container:
            assert_known(container["lifecycle"]["preStop"]["exec"]["command"][1:])


def assert_known(args: list[str]) -> None:
    # `--help` stops it before it does anything; unknown commands and options are refused first.
    words = [arg for arg in args if not arg.startswith("--")]
    command = words[:2] if words[0] == "topology" else words[:1]
    result = CliRunner().invoke(app, [*command, "--help"])

    assert result.exit_code == 0, args
    for option in (arg for arg in args if arg.startswith("--")):
        assert option in result.output, args


def test_notes_tell_the_next_commands() -> None:
    values = merged(BUNDLED, {"test": {"capability": "triage"}})
    said = notes(values)

    assert "helm test demo --namespace agents --logs" in said
    assert "kubectl --namespace agents rollout status deployment/demo-starling-triage" in said
    assert f"job/{topology_job(render(values))['metadata']['name']}" in said
    assert "WARNING" not in said


def test_notes_tell_what_is_missing() -> None:
    insecure = notes(CASES["insecure"])
    deaf = notes(merged(BUNDLED, {"agents": {"triage": {"breakers": ["b"], "autoscaling": {"mode": "keda"}}}}))
    by_hand = notes(merged(EXTERNAL, {"topology": {"enabled": False}}))
    empty = notes(CASES["no agents"])

    assert "WARNING: nats.bundled.auth.insecure" in insecure
    assert "set autoscaling.keda.prometheus.serverAddress" in deaf
    assert "mesh topology apply my_agents.triage" in by_hand
    assert "set test.capability" in empty
    assert "--set agents.triage.targets" in empty


@pytest.mark.parametrize("case", CASES)
def test_notes_are_commands_that_a_shell_can_read(case: str) -> None:
    for line in notes(CASES[case]).replace("\\\n", " ").splitlines():
        if line.startswith("  "):
            assert shlex.split(line)[0] in ("kubectl", "helm", "mesh")
