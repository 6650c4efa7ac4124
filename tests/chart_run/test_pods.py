"""What the chart renders, run: a pod from its first probe to its last task, and the commands of hooks and tests."""

import asyncio
import re
from pathlib import Path

from mesh import Mesh
from mesh.testing import eventually
from tests.chart.rendering import one
from tests.chart_run.conftest import Deployed
from tests.chart_run.kubelet import Manifest, Node
from tests.holding import until_it_runs
from tests.image.dockerfile import REPOSITORY, parsed

PEER = "demo-starling-triage"


def pod(node: Node, kind: str, name: str) -> Manifest:
    """The pod, or the pod template, of an object."""
    manifest = one(list(node.manifests), kind, name)
    found: Manifest = manifest if kind == "Pod" else manifest["spec"]["template"]
    return found


async def test_a_peer_answers_its_probes_and_drains_within_its_grace(
    mesh: Mesh, deployed: Deployed, tmp_path: Path
) -> None:
    node, until = deployed(), tmp_path / "until"
    async with node.running(node.started(pod(node, "Deployment", PEER))) as peer:
        await peer.until_started()
        ready = await eventually(lambda: peer.probe("readinessProbe"))
        alive = await peer.probe("livenessProbe")
        task = await mesh.submit("hold", str(until))
        await until_it_runs(task)

        async def is_unready() -> bool:
            return not await peer.probe("readinessProbe")

        async with asyncio.TaskGroup() as end:
            stopping = end.create_task(peer.stopped())
            await eventually(is_unready, within_s=60)
            alive_while_draining = await peer.probe("livenessProbe")
            until.touch()

    assert (ready, alive, alive_while_draining) == (True, True, True)
    assert stopping.result() == 0
    assert await task.result(within_s=60) == "held"


async def test_a_task_that_outlives_the_grace_goes_to_another_peer(
    mesh: Mesh, deployed: Deployed, tmp_path: Path
) -> None:
    # The kubelet's patience is not what is tried here, and a busy machine needs more than the least of it.
    node, until = deployed({"graceS": 1, "terminationGracePeriodSeconds": 60}), tmp_path / "until"
    async with node.running(node.started(pod(node, "Deployment", PEER))) as peer:
        await peer.until_started()
        task = await mesh.submit("hold", str(until))
        await until_it_runs(task)
        code = await peer.stopped()
    async with node.running(node.started(pod(node, "Deployment", PEER), name="pod-1")) as successor:
        await successor.until_started()
        until.touch()
        value = await task.result(within_s=60)

    assert code == 0
    assert value == "held"


async def test_the_command_of_helm_test_passes_where_a_peer_serves_and_fails_where_none_does(
    mesh: Mesh, deployed: Deployed
) -> None:
    node = deployed({"test": {"withinS": 4}})
    test = node.started(pod(node, "Pod", "demo-starling-test"))
    within_s = test.pod["spec"]["activeDeadlineSeconds"]

    nobody = await node.ended(test, within_s)
    async with node.running(node.started(pod(node, "Deployment", PEER))) as peer:
        await peer.until_started()
        served = await node.ended(test, within_s)

    assert nobody[0] == 4, nobody
    assert "nobody serves it" in nobody[1]
    assert served[0] == 0, served
    assert "triaged" in served[1]


async def test_the_hooks_make_the_streams_and_find_nothing_wrong(mesh: Mesh, deployed: Deployed) -> None:
    node = deployed()
    jobs = {name: node.started(pod(node, "Job", f"demo-starling-{name}"), name=name) for name in ("topology", "doctor")}

    made = await node.ended(jobs["topology"], 90)
    again = await node.ended(jobs["topology"], 90)
    judged = await node.ended(jobs["doctor"], 90)

    assert made[0] == again[0] == 0, made
    assert judged[0] == 0, judged
    assert "PROBLEM" not in judged[1]


def test_mounted_wheels_go_where_the_image_installs_them_and_looks_for_them(deployed: Deployed) -> None:
    node = deployed({"agents": {"triage": {"wheels": {"configMap": {"name": "my-agents"}}}}})
    spec = pod(node, "Deployment", PEER)["spec"]
    (installer,) = spec["initContainers"]
    script = (REPOSITORY / "ops/docker/install-agents").read_text()
    places = re.findall(r"=\$\{[12]:-([^}]+)\}", script)

    def mounted(container: Manifest) -> list[str]:
        return [mount["mountPath"] for mount in container["volumeMounts"]]

    assert installer["command"] == ["install-agents"]
    assert set(places) <= set(mounted(installer))
    assert places[1] in mounted(spec["containers"][0])
    assert parsed().final.pairs("ENV")["PYTHONPATH"] == places[1]
    assert parsed().final.named("COPY")[-1].words[-1] == "/usr/local/bin/install-agents"
