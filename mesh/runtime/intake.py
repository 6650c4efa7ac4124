"""One capability on one peer: offers its free slots, takes deliveries, and sees each through."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from typing import Any

from contracts.card import Load
from contracts.errors import ContractError, NewerFormat
from contracts.outcome import Status
from contracts.subjects import AGAIN, Address, Identity, Kind, is_legal_id, stand_in
from contracts.task import Sender
from mesh.bus.commit import ack, nak, read_result
from mesh.bus.leader import standing
from mesh.bus.parks import publish_wake
from mesh.bus.pull import Delivery
from mesh.capability import Capability
from mesh.context import BlockingContext
from mesh.errors import BusUnavailable, PermissionDenied, PublishRejected, PublishUnconfirmed
from mesh.runtime import traced
from mesh.runtime.attempt import judge
from mesh.runtime.handling import TIMEOUT_SLACK_S
from mesh.runtime.host import Attempt, Host
from mesh.runtime.offering import Offering
from mesh.runtime.settle import settle
from mesh.runtime.verdict import Answer, HandBack, Reason, Verdict
from mesh.scheduling.service import ServiceTimes
from mesh.workflow.slots import Slot, Slots

log = logging.getLogger("mesh.runtime")

FIRST_LOOK_AGAIN_S = 0.25
LOOK_AGAIN_S_MAX = 5.0
HAND_BACK_WITHIN_S = 3.0
REFUSED_AGAIN_S = 30.0


class Intake:
    """The slots of one capability and what runs in them."""

    def __init__(self, host: Host, capability: Capability[Any, Any, Any], *, on_lost: Callable[[], None]) -> None:
        self.capability = capability
        self.queue_depth = 0
        self._host = host
        self._metrics = host.metrics.of(capability.name, capability.decided_by)
        agent = capability.agent
        self._me = Sender(agent=agent.name, role=agent.role, version=agent.version, peer=host.peer)
        self._slots = Slots(capability.limits.concurrency, on_free=lambda: self.offering.look_again())
        self._service = ServiceTimes()
        self.offering = Offering(
            host, capability.name, self._slots, self._service, on_delivery=self._arrived, on_lost=on_lost
        )
        self._attempts = 0
        self._settled_meanwhile = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._fibers: asyncio.TaskGroup

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Take work until left or drained."""
        async with asyncio.TaskGroup() as self._fibers, self.offering.open():
            yield

    @property
    def in_flight(self) -> int:
        """Tasks that hold a slot here, or stand in line for one."""
        return self._slots.in_use

    @property
    def is_paused(self) -> bool:
        return self._host.controls.is_paused(self.capability.name)

    def load(self) -> Load:
        tally = self._host.answered.of(self.capability.name)
        return Load(
            slots=self._slots.count,
            in_flight=self.in_flight,
            bid=self.offering.bid,
            service_s=self._service.every.mean_s,
            delay_s=self.offering.delay_s,
            classes=dict(self._service.means_s()),
            is_paused=self.is_paused,
            held_by=self._host.breakers.held_by(self.capability.name),
            answered=tally.answered,
            failed=tally.failed,
        )

    async def stop_bidding(self) -> None:
        """Take the offers back; what was handed over meanwhile still runs."""
        await self.offering.stop()

    async def finish(self, *, grace_s: float) -> None:
        """Wait for what runs, at most `grace_s` seconds; then hand the rest back. What waits is parked."""
        self._host.park_waiting()
        try:
            async with asyncio.timeout(grace_s):
                await self._idle.wait()
        except TimeoutError:
            late = [attempt.fiber for attempt in self._host.running.values() if attempt.capability is self.capability]
            for fiber in late:
                if fiber is not None:
                    fiber.cancel()

    def _arrived(self, delivery: Delivery) -> None:
        self.queue_depth = delivery.pending
        address = self._host.bus.subjects.parse(delivery.subject)
        if address.kind is Kind.WAKE and address.lane == AGAIN:
            self._fibers.create_task(self._wake_again(address.identity, delivery))
            return
        is_wake = address.kind is Kind.WAKE
        identity, illegal_id = _identity(address)
        running = self._host.running.get(identity)
        if running is not None and running.is_wake != is_wake:
            # One is about to end, or the park it left says all: the other is looked at again then.
            self._fibers.create_task(nak(self._host.bus, delivery, delay_s=_look_again_s(delivery)))
            return
        if running is not None:
            # The same task again while it runs here: the newer hand-over is the one to settle.
            running.delivery = replace(
                running.delivery, reply=delivery.reply, sequence=delivery.sequence, delivered=delivery.delivered
            )
            self._host.heartbeat.change(running.row, delivery, for_s=self._speak_for_s())
            self._metrics.redeliveries.inc()
            return
        try:
            row = self._host.heartbeat.begin(delivery, for_s=self._speak_for_s())
        except IndexError:
            self._fibers.create_task(nak(self._host.bus, delivery, delay_s=1.0))
            return
        slot = Slot(self._slots)
        attempt = Attempt(identity, self.capability, self._metrics, self._me, delivery, row, slot, illegal_id, is_wake)
        self._host.running[identity] = attempt
        self._attempts += 1
        self._metrics.bid_to_start_s.observe(self.offering.waited_s)
        self._idle.clear()
        attempt.fiber = self._fibers.create_task(self._handle(attempt))

    async def _handle(self, attempt: Attempt) -> None:
        host = self._host
        try:
            verdict: Verdict
            try:
                await attempt.slot.take()
                attempt.slot_at = time.perf_counter()
                verdict = await judge(host, attempt)
            except asyncio.CancelledError:
                # Hand it back now, or the next peer waits for ack_wait.
                is_recorded = attempt.started_at > 0
                attempt.span.tell({"starling.status": "handed-back", "starling.reason": "draining"})
                with suppress(TimeoutError):
                    async with asyncio.timeout(HAND_BACK_WITHIN_S):
                        await settle(host, attempt, HandBack(Reason.DRAINING, is_recorded=is_recorded))
                raise
            except NewerFormat as error:
                log.warning("%s is left to a newer peer: %s", attempt.identity, error)
                verdict = HandBack(Reason.NEWER_FORMAT, delay_s=host.settings.ack_wait_s, is_recorded=True)
            except ContractError as error:
                log.error("%s has a malformed record, an operator must see to it: %s", attempt.identity, error)
                verdict = HandBack(Reason.MALFORMED, delay_s=REFUSED_AGAIN_S)
            except (BusUnavailable, PublishUnconfirmed):
                verdict = HandBack(Reason.BUS_AWAY, delay_s=1.0)
            except PermissionDenied as error:
                log.error("%s cannot be worked on, it comes again: %s", attempt.identity, error)
                verdict = HandBack(Reason.REFUSED, delay_s=REFUSED_AGAIN_S)
            traced.judged(host, attempt, verdict)
            # What fails soon is not fast.
            if isinstance(verdict, Answer) and verdict.outcome.status is Status.DONE:
                self.offering.observe(attempt.held_s, attempt.payload_class)
            with self._settling(attempt):
                try:
                    await settle(host, attempt, verdict)
                except PublishRejected as error:
                    log.error("%s cannot be settled, it comes again: %s", attempt.identity, error)
                    await settle(host, attempt, HandBack(Reason.REFUSED, delay_s=REFUSED_AGAIN_S))
        finally:
            if attempt.slot_at:
                mesh_s = time.perf_counter() - attempt.slot_at - attempt.ran_s
                self._metrics.worked(handler_s=attempt.handler_s, mesh_s=mesh_s)
            attempt.span.end()
            host.heartbeat.end(attempt.row)
            del host.running[attempt.identity]
            host.keep_parts(attempt)
            self._free(attempt)
            # It refers back to the attempt: without this each task would be garbage that only a collection finds.
            attempt.context = None

    @contextmanager
    def _settling(self, attempt: Attempt) -> Iterator[None]:
        """Have the next task fetched while this one is committed; as many as there are slots, lest results pile up."""
        if self._settled_meanwhile < self._slots.count and _thread_of(attempt) is None:
            attempt.slot.give()
        self._settled_meanwhile += 1
        try:
            yield
        finally:
            self._settled_meanwhile -= 1

    async def _wake_again(self, identity: Identity, delivery: Delivery) -> None:
        """A wake that met another one: it becomes a wake once that one is acked, unless a younger one stands."""
        host = self._host
        try:
            is_over = (
                await publish_wake(host.bus, identity)
                or await standing(host.bus, identity, host.bus.subjects.wake(identity)) > delivery.sequence
                or await read_result(host.bus, identity) is not None
            )
        except (BusUnavailable, PublishUnconfirmed, PublishRejected):
            is_over = False
        self.offering.look_again()
        if is_over:
            await ack(host.bus, delivery)
        else:
            await nak(host.bus, delivery, delay_s=_look_again_s(delivery))

    def _free(self, attempt: Attempt) -> None:
        thread = _thread_of(attempt)
        if thread is not None:
            # Nobody waits for it any more: the slot is free when it ends.
            thread.add_done_callback(lambda _: self._release(attempt))
        else:
            self._release(attempt)

    def _release(self, attempt: Attempt) -> None:
        attempt.slot.give()
        self._attempts -= 1
        if not self._attempts:
            self._idle.set()

    def _speak_for_s(self) -> float:
        return self.capability.limits.timeout_s + TIMEOUT_SLACK_S


def _thread_of(attempt: Attempt) -> asyncio.Future[None] | None:
    """The end of the thread that a plain handler may still run in."""
    context = attempt.context
    thread = context.thread_ended if isinstance(context, BlockingContext) else None
    return None if thread is None or thread.done() else thread


def _look_again_s(delivery: Delivery) -> float:
    """How long a message is left alone that has to wait for the run of its task to end."""
    return min(LOOK_AGAIN_S_MAX, FIRST_LOOK_AGAIN_S * 2.0 ** min(delivery.delivered, 10))


def _identity(address: Address) -> tuple[Identity, str]:
    """Whose records a delivery's are, and its own id where that is illegal."""
    if is_legal_id(address.id):
        return address.identity, ""
    return Identity(address.capability, stand_in(address.id)), address.id
