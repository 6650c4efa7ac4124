"""What a leaf node far away costs: tasks between a hub and a leaf node whose link is slow.

    python -m ops.chaos.regions [--one-way-ms 0,15] [--tasks 1000]

A hub with JetStream (`sync_interval: always`), a leaf node without, and a link that lets every byte come late by so
many milliseconds each way. Peers and clients stand on either side, in all four combinations. Told are the time of one
task after another, and the rate with 50 in flight.
"""

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from mesh import Agent, Mesh
from mesh.settings import Settings
from mesh.testing import eventually, hosting
from mesh.testing.cluster import free_ports
from mesh.testing.network import Link
from mesh.testing.servers import configured_server

ONE_BY_ONE = 200
IN_FLIGHT = 50
PREFIX = "regions"

_HUB = """
listen: "127.0.0.1:{port}"
server_name: hub
jetstream {{ store_dir: store, sync_interval: always }}
leafnodes {{ listen: "127.0.0.1:{leaf_port}", no_advertise: true }}
default_js_domain: {{ "$G": "" }}
"""
_LEAF = """
listen: "127.0.0.1:{port}"
server_name: far
leafnodes {{ remotes: [ {{ url: "nats://127.0.0.1:{hub_port}" }} ] }}
default_js_domain: {{ "$G": "" }}
"""


async def measure(mesh: Mesh, capability: str, tasks: int) -> tuple[float, float, float]:
    """Median and 99th percentile of one task after another in milliseconds, and the rate of many."""
    times: list[float] = []
    for number in range(ONE_BY_ONE):
        began = time.perf_counter()
        await (await mesh.submit(capability, number, returns=int)).result()
        times.append((time.perf_counter() - began) * 1e3)
    times.sort()
    todo = iter(range(tasks))

    async def keep_asking() -> None:
        for number in todo:
            await (await mesh.submit(capability, number, returns=int)).result()

    began = time.perf_counter()
    async with asyncio.TaskGroup() as fibers:
        for _ in range(IN_FLIGHT):
            fibers.create_task(keep_asking())
    return statistics.median(times), times[int(len(times) * 0.99)], tasks / (time.perf_counter() - began)


async def run(one_way_s: float, tasks: int) -> None:
    port, leaf_port, far_port = free_ports(3)
    sides = {"hub": Agent("hub", version="1"), "leaf": Agent("leaf", version="1")}
    for side, agent in sides.items():

        @agent.handles(f"echo_{side}", concurrency=IN_FLIGHT)
        async def echo(number: int) -> int:
            return number

    with tempfile.TemporaryDirectory() as scratch:
        async with Link("127.0.0.1", leaf_port).open() as link:
            link.delay(one_way_s)
            hub, far = Path(scratch) / "hub", Path(scratch) / "far"
            with (
                configured_server(hub, _HUB.format(port=port, leaf_port=leaf_port), port=port),
                configured_server(far, _LEAF.format(port=far_port, hub_port=link.port), port=far_port) as leaf,
            ):
                await eventually(lambda: "Leafnode connection created" in leaf.log)
                at = {
                    side: Settings(nats_url=f"nats://127.0.0.1:{one}", prefix=PREFIX, connect_within_s=30)
                    for side, one in (("hub", port), ("leaf", far_port))
                }
                async with (
                    hosting(sides["hub"], settings=at["hub"]),
                    hosting(sides["leaf"], settings=at["leaf"]),
                    Mesh.connect(settings=at["hub"]) as from_hub,
                    Mesh.connect(settings=at["leaf"]) as from_leaf,
                ):
                    for client, mesh in (("hub", from_hub), ("leaf", from_leaf)):
                        for peer in sides:
                            p50, p99, rate = await measure(mesh, f"echo_{peer}", tasks)
                            sys.stdout.write(
                                f"{one_way_s * 1e3:g} ms each way, client at {client}, peer at {peer}:"
                                f" p50 {p50:.1f} ms, p99 {p99:.1f} ms, {rate:,.0f} tasks/s with {IN_FLIGHT} in flight\n"
                            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one-way-ms", default="0,15", help="comma-separated")
    parser.add_argument("--tasks", type=int, default=1000)
    wanted = parser.parse_args()
    for each in wanted.one_way_ms.split(","):
        asyncio.run(run(float(each) / 1e3, wanted.tasks))


if __name__ == "__main__":
    main()
