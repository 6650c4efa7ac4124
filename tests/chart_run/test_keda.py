"""What KEDA would see and do: the rendered triggers asked of a real server, and of a real Prometheus."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mesh import Mesh
from mesh.client import Handle
from mesh.local.server import LocalServer
from mesh.settings import Settings
from mesh.testing import eventually
from mesh.whereabouts import Where
from tests.chart.rendering import EXTERNAL, Values, merged, one, render, topology_job
from tests.chart_run.conftest import AGENTS, CAPABILITIES
from tests.chart_run.keda import Keda, Scaled, Unreadable
from tests.chart_run.kubelet import Node, Started, address
from tests.holding import until_it_runs

PEER = "demo-starling-triage"
POD = f"{PEER}-7d4b9c-x2x1z"


@dataclass
class Scene:
    """A server of its own with its monitoring page, the rendered chart, and a client."""

    node: Node
    settings: Settings
    mesh: Mesh
    prometheus: str

    @property
    def keda(self) -> Keda:
        return Keda(one(list(self.node.manifests), "ScaledObject", PEER))

    @property
    def peer(self) -> Started:
        template = one(list(self.node.manifests), "Deployment", PEER)["spec"]["template"]
        return self.node.started(template, name=POD)

    @property
    def peer_address(self) -> str:
        return self.peer.variables["MESH_HTTP_HOST"]

    async def topology(self) -> None:
        """What the chart's job does before anything else."""
        job = topology_job(list(self.node.manifests))
        code, said = await self.node.ended(self.node.started(job["spec"]["template"], name="topology"), 90)
        assert code == 0, said


def with_prometheus(host: str) -> Values:
    """Values by which KEDA asks for the state of breakers."""
    server = {"keda": {"prometheus": {"serverAddress": f"http://{host}:9090"}}}
    return {"agents": {"triage": {"autoscaling": server}}}


@asynccontextmanager
async def scene(folder: Path, *, watched: bool = False) -> AsyncIterator[Scene]:
    monitoring, peers, watcher = address(), address(), address()
    server = LocalServer.start(folder / "store", more=f'http: "{monitoring}:8222"')
    try:
        values: Values = {
            "nats": {
                "external": {"url": server.url, "monitoring": {"endpoint": f"{monitoring}:8222"}},
                "auth": {"type": "none"},
            },
            "graceS": 3,
            "doctor": {"enabled": False},
            "agents": {
                "triage": {
                    "targets": ["my_agents"],
                    "capabilities": CAPABILITIES,
                    "breakers": ["openai"],
                    "autoscaling": {"mode": "keda", "minReplicas": 0, "maxReplicas": 20},
                }
            },
            "mesh": {
                "replicas": 1,
                "httpHost": peers,
                "settings": {"MESH_HOT_WAIT_S": 0, "MESH_BEAT_S": 0.5, "MESH_SWEEP_S": 2},
            },
        }
        node = Node(folder / "node", render(merged(EXTERNAL, values, with_prometheus(watcher) if watched else {})))
        shutil.copy(AGENTS, node.working_folder)
        settings = Settings(nats_url=server.url, beat_s=0.5)
        async with Mesh.connect(settings=settings) as mesh:
            here = Scene(node, settings, mesh, watcher)
            await here.topology()
            yield here
    finally:
        server.stop()


async def looks(keda: Keda, wanted: Callable[[Scaled], bool], *, within_s: float = 30.0) -> Scaled:
    """KEDA's look, once it is as wanted."""

    async def is_so() -> Scaled | None:
        seen = await keda.looks()
        return seen if wanted(seen) else None

    found = await eventually(is_so, within_s=within_s, every_s=0.1)
    assert found is not None
    return found


async def test_nothing_to_do_keeps_a_deployment_at_zero_and_a_task_wakes_it(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        idle = await here.keda.looks()
        await here.mesh.submit("triage", 0.0)
        woken = await looks(here.keda, lambda seen: seen.is_active)
        await here.mesh.submit("ask", "why?", priority="urgent")
        urgent = await looks(here.keda, lambda seen: seen.values["lag_3_urgent"] == 1)

    assert set(idle.values.values()) == {0.0}
    assert (idle.is_active, idle.replicas) == (False, 0)
    assert woken.values["lag_0_normal"] == 1
    assert woken.replicas == 1
    assert urgent.is_active


async def test_a_backlog_counts_with_what_runs_and_is_gone_when_it_is_done(tmp_path: Path) -> None:
    until = tmp_path / "until"
    async with scene(tmp_path) as here, here.node.running(here.peer) as peer:
        await peer.until_started()
        handles = [await here.mesh.submit("hold", str(until)) for _ in range(60)]
        await until_it_runs(handles[1])
        busy = await here.keda.looks()
        until.touch()
        for handle in handles:
            await handle.result(within_s=60)
        done = await looks(here.keda, lambda seen: not seen.is_active)

    assert busy.values["lag_1_normal"] == 60
    assert busy.replicas == 6
    assert done.replicas == 0


async def until_parked(task: Handle[Any]) -> None:
    """Return when the task sleeps and no peer holds it."""

    async def is_parked() -> bool:
        return (await task.status()).where is Where.PARKED

    await eventually(is_parked, within_s=60, every_s=0.05)


async def test_a_sleeper_wakes_a_deployment_at_zero_when_its_time_has_come_and_goes_on(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        async with here.node.running(here.peer) as peer:
            await peer.until_started()
            await until_parked(await here.mesh.submit("nap", 3_600.0))
            # Long enough to be seen asleep on a machine that does much else.
            task = await here.mesh.submit("nap", 15.0)
            await until_parked(task)
            # Gone at once: a drain may take as long as the nap, on a machine that does much else.
            peer.process.kill()
            await peer.process.wait()
        awake = await looks(here.keda, lambda seen: seen.is_active, within_s=60)
        async with here.node.running(here.peer) as successor:
            await successor.until_started()
            value = await task.result(within_s=60)
            settled = await looks(here.keda, lambda seen: not seen.is_active)

    assert {name: lag for name, lag in awake.values.items() if lag} == {"lag_2_timers": 1}
    assert awake.replicas == 1
    assert value == "slept"
    # One that sleeps on keeps nobody up.
    assert settled.replicas == 0


async def test_before_the_streams_are_made_nothing_is_read_from_them(tmp_path: Path) -> None:
    async with scene(tmp_path) as here:
        trigger = here.keda.rendered["spec"]["triggers"][0]
        gone = {**trigger, "metadata": {**trigger["metadata"], "consumer": "never-made"}}
        keda = Keda({"spec": {**here.keda.rendered["spec"], "triggers": [gone]}})
        for _ in range(3):
            await here.mesh.submit("triage", 0.0)
        seen = await keda.looks()

    # Why the topology is made before the first ScaledObject looks: the stream's last sequence is no queue.
    assert seen.values["lag_0_normal"] >= 3


SCRAPES = """
global:
  scrape_interval: 500ms
scrape_configs:
  - job_name: mesh
    static_configs:
      - targets: ["{peer}:9464"]
        # What the cluster, the ServiceMonitor and its relabelings add.
        labels: {{namespace: agents, instance: {pod}}}
"""


@asynccontextmanager
async def prometheus(here: Scene, folder: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A Prometheus at the rendered address that scrapes the peer's pod."""
    config = folder / "prometheus.yml"
    config.write_text(SCRAPES.format(peer=here.peer_address, pod=POD))
    process = await asyncio.create_subprocess_exec(
        *("prometheus", f"--config.file={config}", f"--storage.tsdb.path={folder / 'tsdb'}"),
        f"--web.listen-address={here.prometheus}:9090",
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus here")
async def test_an_open_breaker_does_not_scale_a_deployment_up_and_a_closed_one_does(tmp_path: Path) -> None:
    async with scene(tmp_path, watched=True) as here, here.node.running(here.peer) as peer, prometheus(here, tmp_path):
        await peer.until_started()
        await operator(here, "breaker", "open", "openai", "--for-s", "600")
        handles = [await here.mesh.submit("ask", "why?") for _ in range(60)]
        open_ = await looks(here.keda, lambda seen: seen.values["breakers_open"] == 1 and seen.values["peers"] == 1)
        await operator(here, "breaker", "close", "openai")
        for handle in handles:
            await handle.result(within_s=60)
        closed = await looks(here.keda, lambda seen: seen.values["breakers_open"] == 0)

    assert open_.values["lag_3_normal"] >= 50
    assert (open_.is_active, open_.replicas) == (True, 1)
    assert not closed.is_active


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="no prometheus here")
async def test_a_backlog_scales_where_prometheus_says_that_no_breaker_is_open(tmp_path: Path) -> None:
    async with scene(tmp_path, watched=True) as here, prometheus(here, tmp_path):
        for _ in range(60):
            await here.mesh.submit("ask", "why?")

        async def answers() -> Scaled | None:
            try:
                return await here.keda.looks()
            except Unreadable:
                return None

        seen = await eventually(answers)

    assert seen is not None
    assert (seen.values["breakers_open"], seen.replicas) == (0, 6)


async def test_while_prometheus_is_away_nothing_is_decided(tmp_path: Path) -> None:
    async with scene(tmp_path, watched=True) as here:
        await here.mesh.submit("triage", 0.0)

        with pytest.raises(Unreadable):
            await here.keda.looks()


async def operator(here: Scene, *command: str) -> None:
    """A command of an operator."""
    run = await asyncio.create_subprocess_exec("mesh", *command, env=dict(here.peer.variables))
    assert await run.wait() == 0
