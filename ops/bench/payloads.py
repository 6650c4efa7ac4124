"""How long large payloads and values take, beside one that travels in its message, in one call.

    python -m ops.bench.payloads [--rounds 20] [--json]

One client and one peer process on one server (durable file storage, `sync_interval` 1 s). A task echoes its payload,
so each round trip carries the size twice each way: payload in, value out. Milliseconds, one task at a time.
"""

import argparse
import asyncio
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

from mesh import Agent, Mesh
from mesh.local.server import local_server
from mesh.peer import Peer
from mesh.settings import Settings

SIZES = {"128_b": 126, "100_kb": 100_000, "200_kb": 200_000, "1_mb": 1_000_000, "10_mb": 10_000_000}
SERVED_WITHIN_S = 30.0

agent = Agent("bench", version="1")


@agent.handles("echo", timeout_s=120)
async def echo(text: str) -> str:
    return text


def settings(url: str) -> Settings:
    return Settings(nats_url=url, prefix="payloads", result_ttl_s=30.0, objects_bytes_max=8 * 2**30)


async def measure(url: str, rounds: int) -> dict[str, Any]:
    """Median and worst round trip for each size, and the most memory that the client took."""
    told: dict[str, Any] = {}
    async with Mesh.connect(settings=settings(url)) as mesh:
        async with asyncio.timeout(SERVED_WITHIN_S):
            await (await mesh.submit(echo, "x")).result()
        for name, size in SIZES.items():
            text, took_ms = "x" * size, []
            for _ in range(rounds):
                began = time.perf_counter()
                value = await (await mesh.submit(echo, text)).result()
                took_ms.append((time.perf_counter() - began) * 1e3)
                assert len(value) == size
            told[name] = {"median_ms": round(statistics.median(took_ms), 2), "max_ms": round(max(took_ms), 2)}
    told["client_rss_mb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peer:
        asyncio.run(Peer(agent.hosted, settings=settings(options.peer)).run())
        return
    with local_server() as server:
        peer = subprocess.Popen(
            [sys.executable, "-m", "ops.bench.payloads", "--peer", server.url], env=os.environ.copy()
        )
        try:
            told = asyncio.run(measure(server.url, options.rounds))
        finally:
            peer.kill()
            peer.wait()
    if options.json:
        print(json.dumps(told))
        return
    for name, figures in told.items():
        print(f"{name:>14}  {figures}")


if __name__ == "__main__":
    main()
