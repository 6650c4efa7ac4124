"""Two meshes on one server, in accounts of their own: nothing crosses, and a full one stops only itself."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh import Agent
from mesh.bus import control, topology
from mesh.cli.fleet import describe
from mesh.client import Mesh
from mesh.errors import Overloaded, SetupError, StreamFull
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.cluster import free_ports
from mesh.testing.servers import configured_server
from tests.operations.access import generated
from tests.operations.pages import block

ACCESS = block("access.yaml of two tenants")
TENANTS = ("shop", "lab")
SMALL = {"stream_bytes_max": 2**20, "objects_bytes_max": 2**20, "events_bytes_max": 2**20}
"""What streams may hold counts against the account's limit as they are made."""


@dataclass
class Two:
    """Two users of a tenant."""

    peer: Settings
    operator: Settings


@asynccontextmanager
async def tenants(folder: Path, **limits: dict[str, Any]) -> AsyncIterator[tuple[Two, Two]]:
    """Users of each tenant of the page's access file, with other limits where they are given."""
    access = yaml.safe_load(ACCESS)
    for name, limit in limits.items():
        access["meshes"][name]["jetstream"] = limit
    (port,) = free_ports(1)
    users = generated(folder, access)
    config = f"""
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: store }}
{users.accounts}
"""
    with configured_server(folder / "server", config, port=port):
        shop, lab = (
            Two(*(users.settings(f"{name}-{role}", port, prefix=name) for role in ("desk", "ops"))) for name in TENANTS
        )
        yield shop, lab


def answering(what: str) -> Agent:
    """An agent whose capability is called as the other tenant's."""
    agent = Agent("desk", version="1")

    @agent.handles("answer")
    async def answer(question: str) -> str:
        return f"{what}: {question}"

    return agent


@asynccontextmanager
async def made(operator: Settings) -> AsyncIterator[None]:
    """Streams and consumers, as `mesh topology apply` makes them."""
    async with Mesh.connect(settings=operator) as mesh:
        specs = (*topology.of_mesh(operator), *topology.of_capability(operator, "answer"))
        await topology.ensure(mesh.bus, specs)
        yield


async def test_no_task_beat_name_or_record_crosses_between_tenants(tmp_path: Path) -> None:
    heard: dict[str, list[str]] = {name: [] for name in TENANTS}
    async with (
        tenants(tmp_path) as (shop, lab),
        Mesh.connect(settings=shop.operator) as in_shop,
        Mesh.connect(settings=lab.operator) as in_lab,
        made(shop.operator),
        made(lab.operator),
        in_shop.bus.listening("shop.>", lambda subject, _, __: heard["shop"].append(subject)),
        in_lab.bus.listening("lab.>", lambda subject, _, __: heard["lab"].append(subject)),
        hosting(answering("shop"), settings=shop.peer) as shop_peer,
        hosting(answering("lab"), settings=lab.peer) as lab_peer,
    ):
        answers = [
            await (await one.submit("answer", "?", key="same", returns=str)).result() for one in (in_shop, in_lab)
        ]
        await control.pause(in_lab.bus, "answer", reason="only here")
        await eventually(lambda: lab_peer.host.controls.is_paused("answer"))
        beats = [len(await describe(one.bus, within_s=0.5)) for one in (in_shop, in_lab)]
        again = await (await in_shop.submit("answer", "again", returns=str)).result()
        streams = [await in_shop.bus.api("STREAM.NAMES"), await in_lab.bus.api("STREAM.NAMES")]

    assert answers == ["shop: ?", "lab: ?"]
    assert beats == [1, 1]
    assert again == "shop: again"
    assert not [name for name in streams[0]["streams"] if "LAB" in name]
    assert not [name for name in streams[1]["streams"] if "SHOP" in name]
    assert heard["shop"]
    assert not [subject for subject in heard["shop"] if "lab" in subject]
    assert not [subject for subject in heard["lab"] if "shop" in subject]
    assert shop_peer.live_peers() == lab_peer.live_peers() == 1


async def fill(mesh: Mesh, size: int) -> None:
    """Store messages of a size in a stream without a limit of its own."""
    for number in range(200):
        await mesh.bus.store(f"lab.line.answer.{size}-{number}", bytes(size))


async def test_a_tenant_that_fills_its_quota_does_not_stop_the_other(tmp_path: Path) -> None:
    async with (
        tenants(tmp_path, lab={"max_file": "80MB"}) as (shop, lab),
        made(shop.operator),
        hosting(answering("shop"), settings=shop.peer),
        Mesh.connect(settings=shop.operator) as in_shop,
        Mesh.connect(settings=lab.operator.model_copy(update=SMALL)) as in_lab,
    ):
        await topology.ensure(in_lab.bus, topology.of_mesh(in_lab.bus.settings))
        for size in (900_000, 30_000, 1_000, 30):
            with pytest.raises(StreamFull):
                await fill(in_lab, size)

        with pytest.raises(Overloaded):
            await in_lab.submit("answer", "no room", returns=str)
        answer = await (await in_shop.submit("answer", "?", returns=str)).result()

    assert answer == "shop: ?"


async def test_what_streams_may_hold_has_to_fit_into_a_tenants_quota(tmp_path: Path) -> None:
    async with tenants(tmp_path, lab={"max_file": "80MB"}) as (_, lab), Mesh.connect(settings=lab.operator) as in_lab:
        with pytest.raises(SetupError, match="insufficient storage"):
            await topology.ensure(in_lab.bus, topology.of_mesh(lab.operator))


async def test_a_tenant_makes_no_more_streams_than_it_may(tmp_path: Path) -> None:
    async with (
        tenants(tmp_path, lab={"max_file": "1GB", "max_streams": 3}) as (shop, lab),
        Mesh.connect(settings=shop.operator) as in_shop,
        Mesh.connect(settings=lab.operator) as in_lab,
    ):
        with pytest.raises(SetupError, match="maximum number of streams"):
            await topology.ensure(in_lab.bus, topology.of_mesh(lab.operator))

        await topology.ensure(in_shop.bus, topology.of_mesh(shop.operator))
