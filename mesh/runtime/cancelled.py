"""Answer tasks that were cancelled while they waited, without waiting for a slot.

A cancel is a control record, and whoever touches the task next answers `cancelled`. A running task's peer does so
at once. A task that is queued behind busy slots, or waits for a retry, would be touched late; so the peers of its
capability answer it themselves: after a moment left to whoever runs it, in an order that each works out alone from
the presence beats. The first finds no result and commits one, the next finds it. The message stays queued, and
is acked when it is handed out and meets its record.
"""

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from contracts import headers as names
from contracts import wire
from contracts.errors import ContractError
from contracts.event import EventKind
from contracts.outcome import Outcome, Status
from contracts.subjects import Identity, in_line
from mesh.bus.commit import commit
from mesh.bus.lines import wake_next
from mesh.bus.objects import payload_digest
from mesh.bus.parks import wake_tree
from mesh.bus.records import read_many
from mesh.capability import Capability
from mesh.errors import PublishRejected
from mesh.runtime.host import Host, own_ttl_s
from mesh.runtime.turn import envelope_of, submitted_as

log = logging.getLogger("mesh.runtime")

FOR_ITS_RUNNER_S = 0.3
TURN_S = 1.0
TURNS_MAX = 3
AT_ONCE = 32


def turn(peers: Iterable[str], peer: str, task: Identity) -> int:
    """Whose turn it is to answer a task: 0 goes first. The same order on every peer that hears the same beats."""
    order = sorted({*peers, peer}, key=lambda each: hashlib.sha256(f"{each} {task}".encode()).digest())
    return order.index(peer)


class Cancelled:
    """Takes in cancels as they are heard, and answers those whose task only waits."""

    def __init__(self, host: Host, serving: Callable[[str], Iterable[str]]) -> None:
        self._host = host
        self._serving = serving
        self._heard: asyncio.Queue[Identity] = asyncio.Queue()

    def heard(self, task: Identity) -> None:
        self._heard.put_nowait(task)

    async def keep(self, capabilities: Iterable[Capability[Any, Any, Any]]) -> None:
        """Answer for ever."""
        ours = {capability.name: capability for capability in capabilities}
        room = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as fibers:
            while True:
                task = await self._heard.get()
                capability = ours.get(task.capability)
                if capability is None or task in self._host.running:
                    continue
                mine = turn(self._serving(task.capability), self._host.peer, task)
                if mine < TURNS_MAX:
                    fibers.create_task(self._answer(task, capability, room, after_s=FOR_ITS_RUNNER_S + mine * TURN_S))

    async def _answer(
        self,
        task: Identity,
        capability: Capability[Any, Any, Any],
        room: asyncio.Semaphore,
        *,
        after_s: float,
    ) -> None:
        await asyncio.sleep(after_s)
        host, subjects = self._host, self._host.bus.subjects
        async with room:
            records = [subjects.result(task), subjects.park(task), *subjects.queued(task)]
            result, park, *queued = await read_many(host.bus, records)
            waiting = next((stored for stored in queued if stored is not None), None)
            if result is None and park is not None:
                # It may have something to undo: whoever takes it up finds the cancel.
                await wake_tree(host.bus, task)
                return
            if result is not None or waiting is None or task in host.running:
                return
            try:
                as_type = wire.content_type(waiting.headers.get(names.CONTENT_TYPE))
            except ContractError:
                as_type = "application/json"
            outcome = Outcome(
                status=Status.CANCELLED,
                digest=payload_digest(waiting.headers, waiting.data, task),
                peer=host.peer,
                attempt=0,
                queue_s=max(0.0, time.time() - waiting.stored_at),
                submitted_as=submitted_as(waiting.headers),
                # Whether its turn has come is not asked: the one after it looks past it.
                is_early=in_line(task) is not None,
            )
            ttl_s = own_ttl_s(host.settings, capability, task)
            try:
                standing = await commit(host.bus, task, wire.encode(outcome, as_type), ttl_s=ttl_s, as_type=as_type)
            except PublishRejected as error:
                log.error("%s is cancelled and cannot be answered: %s", task, error)
                return
            if standing is None:
                metrics = host.metrics.of(capability.name, capability.decided_by)
                metrics.tasks[Status.CANCELLED].inc()
                envelope = envelope_of(waiting.headers)
                metrics.called(envelope.caller)
                await host.tell(EventKind.CANCELLED, task)
                await host.events.ended(task, envelope, capability.agent, outcome)
                await wake_next(host.bus, task)
