"""Tasks asked for under record, and what the record proves when nothing moves any more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

from contracts import headers as names
from contracts.outcome import Outcome
from contracts.subjects import TIMEKEEPER, Identity
from mesh.bus import topology
from mesh.bus.connection import Bus, Headers
from mesh.errors import BusUnavailable, PublishUnconfirmed
from mesh.testing.cluster import Cluster
from mesh.testing.faults import Scene, repeated_until_done, submit_surely
from mesh.testing.history import Entry, Findings, History, What, check, observe, text

QUIET_WITHIN_S = 120.0
LOOK_EVERY_S = 0.2


@asynccontextmanager
async def listening(bus: Bus, history: History, *, key_prefix: str = "") -> AsyncIterator[None]:
    """Note the server's echo of every stored result whose id begins so, until left."""

    def heard(subject: str, _: bytes, headers: Headers) -> None:
        task = bus.subjects.parse(subject).identity
        if task.id.startswith(key_prefix):
            history.add(Entry(What.ECHOED, task=str(task), sequence=int(headers.get(names.SEQUENCE, 0))))

    async with bus.listening(bus.subjects.result_echo[1], heard):
        yield


async def ask(
    scene: Scene,
    capability: str,
    key: str,
    payload: Any = None,
    *,
    patience_s: float | None = None,
    is_doomed: bool = False,
    is_workflow: bool = False,
    deadline_s: float | None = None,
) -> Outcome:
    """Submit a task until that is confirmed, wait for its outcome, and record both."""
    task = Identity(capability, key)
    scene.history.add(Entry(What.ATTEMPTED, task=str(task), is_doomed=is_doomed, is_workflow=is_workflow))
    if not is_doomed:
        scene.submitted.append((task, payload))
    handle = await submit_surely(scene.client, task, payload, patience_s=patience_s, deadline_s=deadline_s)
    scene.history.add(Entry(What.CONFIRMED, task=str(task), is_new=handle.is_new))
    outcome: Outcome = await handle.outcome()
    scene.history.add(Entry(What.ANSWERED, task=str(task), status=outcome.status, value=text(outcome.value)))
    return outcome


async def findings(scene: Scene, *, within_s: float = QUIET_WITHIN_S) -> Findings:
    """What the history proves, once nothing moves any more or `within_s` seconds are over.

    On a cluster every replica is looked at: that they differ is a violation of its own.
    """
    bus = scene.client.bus
    # What is left when the time is over is for the checker to tell.
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                if await is_quiet(bus):
                    break
                await asyncio.sleep(LOOK_EVERY_S)
    await repeated_until_done(lambda: observe(bus, scene.history))
    found = check(scene.history.read())
    if isinstance(scene.server, Cluster):
        return replace(found, differing=await scene.server.differing(bus.subjects.stream))
    return found


async def is_quiet(bus: Bus) -> bool:
    """Whether nothing is queued, in flight or due in the whole mesh, and every replica has what its leader has."""
    try:
        for pattern in (bus.subjects.tasks_of(), *bus.subjects.wakes_of("*")):
            if await topology.queued(bus, pattern):
                return False
        consumers = [f"{bus.subjects.stream}.{name}" for name in await topology.served(bus)]
        timekeepers = [f"{stream}.{TIMEKEEPER}" for stream in await topology.timer_streams(bus)]
        for name in (*consumers, *timekeepers):
            consumer = await bus.api(f"CONSUMER.INFO.{name}")
            if consumer["num_pending"] or consumer["num_ack_pending"]:
                return False
        # What is observed next may be read from any replica.
        info = await bus.api(f"STREAM.INFO.{bus.subjects.stream}")
    except (BusUnavailable, PublishUnconfirmed):
        # A consumer or a stream of a cluster has no leader now.
        return False
    replicas = info.get("cluster", {}).get("replicas") or ()
    return all(replica["current"] and not replica.get("lag") for replica in replicas)
