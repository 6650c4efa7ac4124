"""Tasks asked for under record, and what the record proves when nothing moves any more."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from contracts import headers as names
from contracts.outcome import Outcome
from contracts.subjects import Identity
from mesh.bus import topology
from mesh.bus.connection import Bus, Headers
from mesh.testing.faults import Scene, submit_surely
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
    """What the history proves, once nothing moves any more or `within_s` seconds are over."""
    # What is left when the time is over is for the checker to tell.
    with suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            while True:
                if await is_quiet(scene.client.bus):
                    break
                await asyncio.sleep(LOOK_EVERY_S)
    await observe(scene.client.bus, scene.history)
    return check(scene.history.read())


async def is_quiet(bus: Bus) -> bool:
    """Whether nothing is queued, in flight or due in the whole mesh."""
    for pattern in (bus.subjects.tasks_of(), *bus.subjects.wakes_of("*")):
        if await topology.queued(bus, pattern):
            return False
    consumers = [f"{bus.subjects.stream}.{name}" for name in await topology.served(bus)]
    for name in (*consumers, f"{bus.subjects.timer_stream}.{topology.TIMEKEEPER}"):
        consumer = await bus.api(f"CONSUMER.INFO.{name}")
        if consumer["num_pending"] or consumer["num_ack_pending"]:
            return False
    return True
