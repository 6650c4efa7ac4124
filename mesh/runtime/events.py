"""What happens to this peer and its tasks, told to the stream of events.

Rules.
- An event never fails a task and is never waited for. With the connection gone it is lost, and counted.
- A decision is told once: its event is create-once, under a subject that its content fixes, and whoever settles the
  task, or finds its result later, stores it before the ack. So a decision that is on record is in the stream exactly
  once for as long as that keeps it, whoever dies on the way.
- Where the stream takes none (deleted, no rights, no leader) a decision is repeated for some seconds, while its task
  is spoken for, and then left to the record. After that none is waited for, for a minute, and longer each time.
"""

import logging
import time
from collections.abc import Iterable
from typing import Final

from contracts import wire
from contracts.decision import Decision, keyed
from contracts.event import CLIENT, ROUTINE, Event, EventKind
from contracts.outcome import Outcome
from contracts.subjects import Identity
from contracts.task import Task
from mesh.bus import events as door
from mesh.bus.connection import Bus
from mesh.capability import AgentInfo
from mesh.settings import Settings
from mesh.telemetry.metrics import Metrics

log = logging.getLogger("mesh.runtime")

STORE_WITHIN_S: Final = 12.0
"""How long a stream of events may answer nothing before a decision is left to the record; a failover takes 4 to 9 s."""
NOT_AGAIN_S: Final = 60.0
NOT_AGAIN_S_MAX: Final = 960.0
NOBODY: Final = "-"
"""Stands for the capability of an event that is no task's."""


class Events:
    """The events of one peer."""

    def __init__(self, bus: Bus, settings: Settings, peer: str, metrics: Metrics) -> None:
        self._bus = bus
        self._peer = peer
        self._told = metrics.events
        self._lost = metrics.events_lost
        self._silent_until, self._silent_s = 0.0, NOT_AGAIN_S
        kinds = {"off": frozenset[EventKind](), "notable": frozenset(EventKind) - ROUTINE, "all": frozenset(EventKind)}
        self._kinds = kinds[settings.events]

    async def tell(self, kind: EventKind, task: Identity | None = None, detail: str = "") -> None:
        """Publish an event, if its kind is to be."""
        if kind not in self._kinds:
            return
        capability, task_id = (task.capability, task.id) if task is not None else ("", "")
        event = Event(kind=kind, at=time.time(), peer=self._peer, capability=capability, id=task_id, detail=detail)
        await self._publish(kind, self._bus.subjects.event(kind, task or Identity(NOBODY, self._peer)), event)

    async def ended(self, task: Identity, envelope: Task, agent: AgentInfo, outcome: Outcome) -> None:
        """Tell that a task was answered, by the peer whose record stands."""
        if EventKind.ENDED not in self._kinds:
            return
        event = Event(
            kind=EventKind.ENDED,
            at=time.time(),
            peer=self._peer,
            capability=task.capability,
            id=task.id,
            status=outcome.status,
            failure=outcome.failure.kind if outcome.failure is not None else "",
            queue_s=round(outcome.queue_s, 6),
            run_s=round(outcome.run_s, 6),
            attempt=outcome.attempt,
            agent=agent.name,
            version=agent.version,
            owner=agent.owner,
            caller=envelope.caller or CLIENT,
            confidence=outcome.confidence,
            spent=outcome.spent,
        )
        await self._publish(EventKind.ENDED, self._bus.subjects.event(EventKind.ENDED, task), event)

    async def decided(self, task: Identity, decisions: Iterable[Decision], agent: AgentInfo) -> None:
        """Store each decision of a task that is not in the stream yet. Safe to repeat, by any peer."""
        if EventKind.DECIDED not in self._kinds:
            return
        told = {
            self._bus.subjects.decided(task, key): wire.encode(
                Event(
                    kind=EventKind.DECIDED,
                    at=decision.at,
                    peer=self._peer,
                    capability=task.capability,
                    id=task.id,
                    agent=agent.name,
                    version=decision.version,
                    owner=agent.owner,
                    decision=decision,
                )
            )
            for key, decision in keyed(decisions)
        }
        if not told:
            return
        if time.monotonic() < self._silent_until:
            # It may be stored or not; what is not known to be counts as lost.
            for subject, data in told.items():
                await door.drop(self._bus, subject, data, is_guarded=True)
            self._lost.inc(len(told))
            return
        stored = await door.store_once(self._bus, told, within_s=STORE_WITHIN_S)
        for is_new in stored.values():
            if is_new:
                self._told[EventKind.DECIDED].inc()
        lost = len(told) - len(stored)
        if not lost:
            self._silent_s = NOT_AGAIN_S
            return
        self._lost.inc(lost)
        if time.monotonic() < self._silent_until:
            # Another task has waited as long, and said so.
            return
        log.warning(
            "%s: %d decisions are in its record only: the stream %s takes none; none is waited for in the next %.0f s",
            task, lost, self._bus.subjects.event_stream, self._silent_s,
        )  # fmt: skip
        self._silent_until = time.monotonic() + self._silent_s
        self._silent_s = min(2 * self._silent_s, NOT_AGAIN_S_MAX)

    async def _publish(self, kind: EventKind, subject: str, event: Event) -> None:
        if await door.drop(self._bus, subject, wire.encode(event)):
            self._told[kind].inc()
        else:
            self._lost.inc()
