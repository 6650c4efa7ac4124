"""A cluster of three nodes: what was accepted goes on when its leader dies."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from mesh import Agent
from mesh.bus import topology
from mesh.client import Mesh
from mesh.runtime.host import NOTHING_TRUSTED
from mesh.scheduling.lanes import NORMAL
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.cluster import Cluster, Route, free_ports, local_cluster
from mesh.testing.fixtures import fresh_settings

agent = Agent("doubler", version="1")


@agent.handles("double")
async def double(number: int) -> int:
    return 2 * number


@pytest_asyncio.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    with local_cluster(tmp_path) as nodes:
        await nodes.ready()
        yield nodes


def replicated(cluster: Cluster) -> Settings:
    return fresh_settings(cluster.url).model_copy(update={"replicas": len(cluster.nodes)})


async def test_a_mesh_on_a_cluster_goes_on_when_its_leader_is_killed_and_restarted(cluster: Cluster) -> None:
    settings = replicated(cluster)
    async with hosting(agent, settings=settings), Mesh.connect(settings=settings) as mesh:
        before = await (await mesh.submit(double, 1, key="before")).result()
        leader = await cluster.leader_of(settings.subjects.stream)

        await asyncio.to_thread(cluster.nodes[leader].kill)
        while_away = await (await mesh.submit(double, 2)).result()
        successor = await cluster.leader_of(settings.subjects.stream)
        await asyncio.to_thread(cluster.nodes[leader].restart)
        again = await mesh.submit(double, 1, key="before")
        info = await mesh.bus.api(f"STREAM.INFO.{settings.subjects.stream}")

    assert (before, while_away) == (2, 4)
    assert successor != leader
    assert not again.is_new
    assert info["config"]["num_replicas"] == 3


async def test_a_busy_peer_looks_for_records_again_when_a_consumer_has_a_new_leader(cluster: Cluster) -> None:
    settings = replicated(cluster)
    go_on, began = asyncio.Event(), asyncio.Event()
    busy = Agent("busy", version="1")

    @busy.handles("hold", concurrency=1)
    async def hold() -> None:
        began.set()
        await go_on.wait()

    async with hosting(busy, settings=settings) as peer, Mesh.connect(settings=settings) as mesh:
        running = await mesh.submit(hold)
        await began.wait()
        # With its only slot taken the peer has no pull waiting, on which the new leader could tell that it leads.
        await eventually(lambda: not peer.intakes[0].offering.offered[NORMAL])
        before = await eventually(lambda: peer.host.trusted_above < NOTHING_TRUSTED and peer.host.trust_round)

        await mesh.bus.api(f"CONSUMER.LEADER.STEPDOWN.{settings.subjects.stream}.hold")

        await eventually(lambda: peer.host.trust_round > before)
        go_on.set()
        await running.result()


async def test_nodes_can_be_reached_by_given_ports_and_routes(tmp_path: Path) -> None:
    ports, routes = free_ports(3), free_ports(3)
    others = [tuple(f"nats://127.0.0.1:{port}" for port in routes if port != mine) for mine in routes]
    wired = [Route(mine, there, is_advertised=False) for mine, there in zip(routes, others, strict=True)]

    with local_cluster(tmp_path, ports=ports, routes=wired) as cluster:
        await cluster.ready()
        settings = replicated(cluster)
        async with Mesh.connect(settings=settings) as mesh:
            await topology.ensure(mesh.bus, topology.of_mesh(settings))

    assert [node.port for node in cluster.nodes] == list(ports)


async def test_a_cluster_with_one_node_alone_is_not_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mesh.testing.cluster.READY_WITHIN_S", 2.0)
    with local_cluster(tmp_path) as cluster:
        for node in cluster.nodes[1:]:
            node.kill()

        with pytest.raises(TimeoutError):
            await cluster.ready()
