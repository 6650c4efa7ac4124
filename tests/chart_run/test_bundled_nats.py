"""The bundled NATS of three, started from what is rendered: the mesh on it, and what KEDA finds in it."""

import base64
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from mesh.cli import console
from mesh.testing import eventually
from tests.chart.rendering import BUNDLED, RELEASE, Values, merged, one, render, topology_job
from tests.chart_run.bundled import HEADLESS, Servers
from tests.chart_run.conftest import AGENTS, CAPABILITIES
from tests.chart_run.keda import Keda
from tests.chart_run.kubelet import Manifest, SecretFiles, address
from tests.chart_run.test_keda import PEER, POD
from tests.image import container

pytestmark = pytest.mark.skipif(bool(container.why_not()), reason=f"names need a mount: {container.why_not()}")

OPEN: Values = {"nats": {"bundled": {"auth": {"insecure": True, "existingSecret": ""}}}}
SHORT: Values = {
    "test": {"capability": "triage", "payload": 0.1, "withinS": 8},
    "graceS": 3,
}


def values() -> Values:
    return {
        "agents": {
            "triage": {
                "targets": ["my_agents"],
                "capabilities": CAPABILITIES,
                "autoscaling": {"mode": "keda", "minReplicas": 0, "maxReplicas": 20},
            }
        },
        "mesh": {"httpHost": address(), "settings": {"MESH_HOT_WAIT_S": 0, "MESH_BEAT_S": 0.5, "MESH_SWEEP_S": 2}},
    }


def pod(servers: Servers, kind: str, name: str) -> Manifest:
    """The pod, or the pod template, of an object."""
    manifest = one(list(servers.node.manifests), kind, name)
    found: Manifest = manifest if kind == "Pod" else manifest["spec"]["template"]
    return found


def keda_at(servers: Servers, number: int) -> Keda:
    """KEDA whose first question goes to one of the servers, as the Service chooses among them."""

    def resolve(name: str) -> str:
        return servers.addresses[number] if name == f"{HEADLESS}.cluster.local" else servers.resolve(name)

    return Keda(one(list(servers.node.manifests), "ScaledObject", PEER), resolve)


ACCESS = """
meshes:
  mesh:
    peers:
      triage: {handles: [triage, hold, nap, ask], breakers: [openai]}
    clients:
      probe: {calls: [triage]}
    operators: [ops]
"""


@pytest.fixture
def generated(tmp_path: Path) -> SecretFiles:
    """The Secrets of `mesh auth generate`, as its Kubernetes manifest has them."""
    (tmp_path / "access.yaml").write_text(ACCESS)
    out = tmp_path / "generated"
    command = [sys.executable, "-m", "mesh", "auth", "generate", str(tmp_path / "access.yaml"), "--out", str(out)]
    subprocess.run([*command, "--release", RELEASE], check=True, capture_output=True)
    return {
        secret["metadata"]["name"]: {
            **{key: value.encode() for key, value in secret.get("stringData", {}).items()},
            **{key: base64.b64decode(value) for key, value in secret.get("data", {}).items()},
        }
        for secret in yaml.safe_load_all((out / "kubernetes.yaml").read_text())
        if secret
    }


@pytest.mark.slow
async def test_with_generated_users_the_mesh_serves_and_nobody_else_gets_in(
    tmp_path: Path, generated: SecretFiles
) -> None:
    servers = Servers(tmp_path / "node", render(merged(BUNDLED, SHORT, values())), generated)
    node = servers.node
    shutil.copy(AGENTS, node.working_folder)
    topology = node.started(topology_job(list(servers.node.manifests))["spec"]["template"], name="topology")
    doctor = node.started(pod(servers, "Job", "demo-starling-doctor"), name="doctor")
    test = node.started(pod(servers, "Pod", "demo-starling-test"), name="test")
    nobody = replace(
        test, variables={key: value for key, value in test.variables.items() if not key.startswith("MESH_NATS_NKEY")}
    )

    async with servers.all():
        made = await node.ended(topology, 120)
        assert made[0] == 0, made
        waiting = await node.ended(test, 60)
        queued = await keda_at(servers, 0).looks()
        async with node.running(node.started(pod(servers, "Deployment", PEER), name=POD)) as peer:
            await peer.until_started()
            judged = await node.ended(doctor, 60)
            served = await node.ended(test, 60)
            refused = await node.ended(nobody, 60)
            code = await peer.stopped()

    assert waiting[0] == console.NOT_IN_TIME, waiting
    assert (queued.values["lag_0_normal"], queued.replicas) == (1, 1)
    assert judged[0] == 0, judged
    assert served[0] == 0, served
    assert refused[0] == console.UNREACHABLE, refused
    assert code == 0


@pytest.mark.slow
async def test_three_servers_carry_the_mesh_tell_keda_its_queues_and_outlive_one_of_them(tmp_path: Path) -> None:
    servers = Servers(tmp_path / "node", render(merged(BUNDLED, OPEN, SHORT, values())), {})
    node = servers.node
    shutil.copy(AGENTS, node.working_folder)
    topology = node.started(topology_job(list(servers.node.manifests))["spec"]["template"], name="topology")
    doctor = node.started(pod(servers, "Job", "demo-starling-doctor"), name="doctor")
    test = node.started(pod(servers, "Pod", "demo-starling-test"), name="test")

    async def passes() -> tuple[int, str] | None:
        ended = await node.ended(test, 60)
        return None if ended[0] == console.UNCONFIRMED else ended

    async with servers.all():
        made = await node.ended(topology, 120)
        assert made[0] == 0, made
        # It waits in vain, and what it asked for stays.
        waiting = await node.ended(test, 60)
        lags = [await keda_at(servers, number).looks() for number in range(3)]
        async with node.running(node.started(pod(servers, "Deployment", PEER), name=POD)) as peer:
            await peer.until_started()
            judged = await node.ended(doctor, 60)
            served = await node.ended(test, 60)
            servers.running[2].process.kill()
            await servers.running[2].process.wait()
            # While those that are left elect, who asks is told that there is no answer, and asks again.
            without_one = await eventually(passes, within_s=60)
            async with servers.server(2) as again:
                await again.until_started()
                await eventually(lambda: again.probe("readinessProbe"), within_s=60)
                left = await servers.running[1].stopped()
                without_another = await node.ended(test, 60)
            code = await peer.stopped()

    asked = (served, without_one or (-1, ""), without_another)
    assert waiting[0] == console.NOT_IN_TIME, waiting
    assert [seen.values["lag_0_normal"] for seen in lags] == [1.0, 1.0, 1.0]
    assert all(seen.is_active for seen in lags)
    assert judged[0] == 0, judged
    assert [ended for ended, _ in asked] == [0, 0, 0], asked
    assert (left in (0, 1), code) == (True, 0)
