"""What it costs that users and streams are in two accounts, and that every user is held to its rights, in one call.

    python -m ops.bench.accounts [--tasks 10000] [--rounds 3] [--json]

One submitter and two peer processes, an echo of 128 bytes, durable file storage (`sync_interval` 1 s), once on a server
that lets everybody in and once on one with the accounts that `mesh auth generate` writes. The two take turns, round
by round, so that a noisy machine hits both. A task's messages cross the accounts on every way: submit, pull, commit,
echo, ack.
"""

import argparse
import asyncio
import json
import os
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import psutil

from mesh import Mesh
from mesh.auth.access import JetStreamLimits
from mesh.auth.accounts import MeshRights, accounts_text
from mesh.auth.keys import new_seed, public_key
from mesh.auth.rights import Declared, inbox_prefix, rights_of
from mesh.local.server import LocalServer
from ops.bench.throughput import PEERS, WARM_UP, Worker, echo, measure, round_trips, settings_of

SLOTS = 100
USER = "bench"


def divided(prefix: str) -> str:
    """Configuration with two accounts, whose only user is whoever connects."""
    key = public_key(new_seed())
    rights = rights_of(Declared(prefix, operators=(USER,)))
    accounts = accounts_text([MeshRights(prefix, rights, {USER: [key]}, JetStreamLimits())])
    return f"{accounts}\nno_auth_user: {key}\n"


async def compare(*, tasks: int, rounds: int) -> dict[str, float]:
    """Both servers in turns: rates, round trips, what the servers hold, and the median ratio of a round."""
    prefix = f"bench{os.getpid()}"
    found: dict[str, float] = {}
    rates: dict[str, list[float]] = {}
    async with AsyncExitStack() as stack:
        calls: dict[str, Callable[[], Awaitable[None]]] = {}
        servers: dict[str, LocalServer] = {}
        for name, more in (("one_account", ""), ("two_accounts", divided(prefix))):
            store = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            server = servers[name] = LocalServer.start(store, more=more)
            stack.callback(server.stop)
            for _ in range(PEERS):
                stack.enter_context(Worker("peer", server.url, prefix, 1, SLOTS))
            mesh = await stack.enter_async_context(Mesh.connect(settings=settings_of(server.url, prefix, 1)))
            calls[name] = partial(_call, mesh)
        for name, call in calls.items():
            async with asyncio.timeout(30):
                await call()
            await measure(call, WARM_UP)
            p50, p99 = await round_trips(call)
            found |= {f"{name}_rtt_p50_ms": round(p50, 3), f"{name}_rtt_p99_ms": round(p99, 3)}
        for _ in range(rounds):
            for name, call in calls.items():
                rates.setdefault(name, []).append(await measure(call, tasks))
        for name, server in servers.items():
            found[f"{name}_tasks_per_s"] = round(statistics.median(rates[name]))
            found[f"{name}_server_mb"] = round(psutil.Process(server.pid).memory_info().rss / 1e6)
    pairs = zip(rates["two_accounts"], rates["one_account"], strict=True)
    found["ratio"] = round(statistics.median(two / one for two, one in pairs), 3)
    return found


async def _call(mesh: Mesh) -> None:
    await (await mesh.submit(echo, "x" * 126)).result()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # Peers and the submitter read it; the other server does not mind.
    os.environ["MESH_NATS_INBOX_PREFIX"] = inbox_prefix(USER)
    found = asyncio.run(compare(tasks=options.tasks, rounds=options.rounds))
    print(json.dumps(found) if options.json else "  ".join(f"{name} {value:g}" for name, value in found.items()))


if __name__ == "__main__":
    main()
