"""A leaf node in another region, with the configuration of docs/deploy.md: the mesh works through it unchanged."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from mesh import Agent, Context
from mesh.auth.keys import public_key
from mesh.bus import topology
from mesh.client import Mesh
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.cluster import free_ports
from mesh.testing.network import Link
from mesh.testing.servers import ConfiguredServer, configured_server
from tests.operations.access import generated
from tests.operations.pages import block, with_changes

ACCESS = block("access.yaml with a leaf node")
LARGE = "x" * 300_000
"""Kept as an object, beside the stream."""

near = Agent("near", version="1")
far = Agent("far", version="1")


@near.handles("order")
async def order(number: int, ctx: Context) -> int:
    return await ctx.call(pack, number)


@far.handles("pack")
async def pack(number: int, ctx: Context) -> int:
    await ctx.sleep(0.6)  # past `hot_wait_s`: it parks, and a timer wakes it
    return 2 * number


@far.handles("copy")
async def copy(text: str) -> str:
    return text + text


@dataclass
class Regions:
    """A hub, a leaf node, and the link between them."""

    hub: ConfiguredServer
    leaf: ConfiguredServer
    link: Link
    at_hub: Settings
    at_leaf: Settings
    operator: Settings


@asynccontextmanager
async def regions(folder: Path) -> AsyncIterator[Regions]:
    """Two servers, configured as the page says."""
    hub_port, hub_leaf_port, leaf_port = free_ports(3)
    access = generated(folder, ACCESS)
    (folder / "hub").mkdir()
    (folder / "hub/accounts.conf").write_text(access.accounts)
    hub_config = with_changes(
        block("hub.conf"),
        {
            "0.0.0.0:4222": f"127.0.0.1:{hub_port}",
            "0.0.0.0:7422": f"127.0.0.1:{hub_leaf_port}",
            "/data": str(folder / "hub/store"),
        },
    )
    async with Link("127.0.0.1", hub_leaf_port).open() as link:
        leaf_config = with_changes(
            block("leaf.conf"),
            {
                "0.0.0.0:4222": f"127.0.0.1:{leaf_port}",
                "hub:7422": f"127.0.0.1:{link.port}",
                "UKEY_OF_LEAF_EU": public_key(access.seed("leaf-eu").read_text()),
            },
        )
        with (
            configured_server(folder / "hub", hub_config, port=hub_port) as hub,
            configured_server(
                folder / "leaf",
                leaf_config,
                port=leaf_port,
                environment={**os.environ, "LEAF_EU_SEED": access.seed("leaf-eu").read_text()},
            ) as leaf,
        ):
            await eventually(lambda: "Leafnode connection created" in leaf.log)
            short = {"hot_wait_s": 0.2, "connect_within_s": 20}
            yield Regions(
                hub,
                leaf,
                link,
                access.settings("near", hub_port, **short),
                access.settings("leaf-eu", leaf_port, **short),
                access.settings("ops", hub_port, **short),
            )


@asynccontextmanager
async def made(operator: Settings, *capabilities: str) -> AsyncIterator[None]:
    """Streams and consumers, as `mesh topology apply` makes them."""
    specs = [spec for name in capabilities for spec in topology.of_capability(operator, name)]
    async with Mesh.connect(settings=operator) as mesh:
        await topology.ensure(mesh.bus, (*topology.of_mesh(operator), *specs))
        yield


async def test_a_mesh_works_through_a_leaf_node(tmp_path: Path) -> None:
    async with (
        regions(tmp_path) as two,
        made(two.operator, "order", "pack", "copy"),
        hosting(near, settings=two.at_hub) as here,
        hosting(far, settings=two.at_leaf) as there,
        Mesh.connect(settings=two.operator) as hub,
        Mesh.connect(settings=two.at_leaf) as leaf,
    ):
        from_hub = await (await hub.submit(order, 1)).result()
        from_leaf = await (await leaf.submit(order, 2)).result()
        large = await (await hub.submit(copy, LARGE)).result()
        await eventually(lambda: here.live_peers() == there.live_peers() == 2)

    assert (from_hub, from_leaf) == (2, 4)
    assert large == LARGE + LARGE


async def test_a_region_that_is_cut_off_loses_its_tasks_to_others_and_answers_none_twice(tmp_path: Path) -> None:
    began: list[str] = []
    go_on = asyncio.Event()

    def hosted(where: str) -> Agent:
        agent = Agent(where, version="1")

        @agent.handles("ship", concurrency=2)
        async def ship(number: int) -> str:
            began.append(where)
            if where == "far":
                await go_on.wait()
            return where

        return agent

    stored: list[str] = []
    async with regions(tmp_path) as two, Mesh.connect(settings=two.operator) as hub:
        subjects = hub.bus.subjects
        async with (
            made(two.operator, "ship"),
            hub.bus.listening(subjects.result_echo[1], lambda subject, _, __: stored.append(subject)),
            hosting(hosted("far"), settings=two.at_leaf) as there,
        ):
            tasks = [await hub.submit("ship", number, returns=str) for number in range(2)]
            await eventually(lambda: len(began) == 2)

            two.link.cut()
            async with hosting(hosted("near"), settings=two.at_hub):
                answers = [await task.result() for task in tasks]
                go_on.set()  # what the region came to by itself, while it is cut off
                two.link.heal()
                await eventually(lambda: not there.host.running)
                await eventually(there.is_ready)
                again = await (await hub.submit("ship", 3, returns=str)).result()

    assert answers == ["near", "near"]
    assert again in ("near", "far")
    assert len(stored) == len(set(stored)) == 3


async def test_a_leaf_node_with_jetstream_of_its_own_in_the_account_makes_a_second_mesh(tmp_path: Path) -> None:
    # Why the page says: no JetStream in the leaf's account. Each side keeps every task, and the far one has no peer.
    hub_port, hub_leaf_port, leaf_port = free_ports(3)
    hub_config = f"""
listen: "127.0.0.1:{hub_port}"
server_name: hub
jetstream {{ store_dir: store }}
accounts {{ MESH_AGENTS {{ jetstream: enabled, users: [{{ user: a, password: a }}] }} }}
leafnodes {{ listen: "127.0.0.1:{hub_leaf_port}" }}
"""
    leaf_config = f"""
listen: "127.0.0.1:{leaf_port}"
server_name: eu-1
jetstream {{ store_dir: store, domain: eu }}
accounts {{ MESH_AGENTS {{ jetstream: enabled, users: [{{ user: a, password: a }}] }} }}
leafnodes {{ remotes: [ {{ url: "nats://a:a@127.0.0.1:{hub_leaf_port}", account: MESH_AGENTS }} ] }}
"""

    def at(port: int) -> Settings:
        return Settings(nats_url=f"nats://a:a@127.0.0.1:{port}", prefix="mesh", stream_bytes_max=2**26)

    with (
        configured_server(tmp_path / "hub", hub_config, port=hub_port),
        configured_server(tmp_path / "leaf", leaf_config, port=leaf_port) as leaf,
    ):
        await eventually(lambda: "Leafnode connection created" in leaf.log)
        async with Mesh.connect(settings=at(hub_port)) as hub, Mesh.connect(settings=at(leaf_port)) as there:
            for one in (hub, there):
                await topology.ensure(one.bus, topology.streams(one.bus.settings))
            await hub.submit("ship", 1, returns=str)
            kept = [await eventually(lambda one=one: topology.count(one.bus, "mesh.task.>")) for one in (hub, there)]

    assert kept == [1, 1]
