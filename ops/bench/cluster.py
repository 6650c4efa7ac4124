"""A three-node NATS cluster on loopback, as the shipped cluster configuration sets it: `sync_interval: always`."""

import asyncio
import json
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nats

from mesh.local.server import binary

NODES = 3
READY_WITHIN_S = 30.0

_CONFIG = """\
server_name: n{node}
listen: "127.0.0.1:{port}"
jetstream {{ store_dir: {store}, sync_interval: always }}
cluster {{ name: bench, listen: "127.0.0.1:{route}", routes: {routes} }}
"""


@contextmanager
def local_cluster(folder: Path) -> Iterator[list[str]]:
    """Three nodes until left; their addresses."""
    ports, routes = _free_ports(NODES), _free_ports(NODES)
    peers = json.dumps([f"nats://127.0.0.1:{route}" for route in routes])
    nodes = []
    try:
        for node, (port, route) in enumerate(zip(ports, routes, strict=True)):
            store = folder / f"n{node}"
            store.mkdir()
            config = store / "nats.conf"
            text = _CONFIG.format(node=node, port=port, route=route, routes=peers, store=json.dumps(str(store)))
            config.write_text(text)
            nodes.append(subprocess.Popen([binary(), "-c", str(config)], stderr=subprocess.DEVNULL))
        urls = [f"nats://127.0.0.1:{port}" for port in ports]
        asyncio.run(_until_ready(urls))
        yield urls
    finally:
        for process in nodes:
            process.terminate()
        for process in nodes:
            process.wait()


async def _until_ready(urls: list[str]) -> None:
    give_up_at = time.monotonic() + READY_WITHIN_S

    async def quiet(_: Exception) -> None:
        return None

    nc = await nats.connect(urls, max_reconnect_attempts=-1, reconnect_time_wait=0.2, error_cb=quiet)
    probe = json.dumps({"name": "READY", "subjects": ["ready"], "num_replicas": NODES}).encode()
    while True:
        try:
            answer = json.loads((await nc.request("$JS.API.STREAM.CREATE.READY", probe, timeout=2)).data)
            if "error" not in answer:
                break
        except (nats.errors.Error, TimeoutError):
            pass
        if time.monotonic() > give_up_at:
            raise TimeoutError("the cluster is not ready")
        await asyncio.sleep(0.2)
    await nc.request("$JS.API.STREAM.DELETE.READY", timeout=5)
    await nc.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for probe in sockets:
        probe.bind(("127.0.0.1", 0))
    ports = [probe.getsockname()[1] for probe in sockets]
    for probe in sockets:
        probe.close()
    return ports
