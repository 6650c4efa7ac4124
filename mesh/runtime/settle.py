"""Tell the stream what an attempt came to. Effect first, then settle: result, sends, dead letter, then ack."""

import logging
import math
import time
from collections.abc import Sequence
from typing import assert_never

import msgspec

from contracts import headers as names
from contracts import wire
from contracts.decision import Decision
from contracts.errors import ContractError, NewerFormat
from contracts.event import EventKind
from contracts.outcome import AttemptEnded, Ended, Failure, FailureKind, Outcome, Status
from contracts.subjects import ancestry, in_line
from contracts.task import Task
from contracts.wire import ContentType
from mesh.bus.commit import ack, bury, commit, nak, read_outcome, relay, stored_type
from mesh.bus.ledger import record_ended
from mesh.bus.lines import mark_ttl_s, pass_on
from mesh.bus.objects import SLACK_S, keep_for, payload_place, remove
from mesh.bus.outsized import Taken, referred
from mesh.bus.parks import park, wake
from mesh.bus.records import Stored, read_many
from mesh.bus.timers import set_timer
from mesh.errors import PermissionDenied, PublishRejected
from mesh.runtime.handling import HOLD_S
from mesh.runtime.host import Attempt, Host
from mesh.runtime.verdict import Answer, Answered, HandBack, Park, Parked, Reason, Retry, Superseded, Verdict
from mesh.workflow.parking import Wait, next_due

log = logging.getLogger("mesh.runtime")

RECORD_OVERHEAD_BYTES = 4_096
DELAY_SHARE = 0.5
"""Of the time that is left to run a task, what the peer's retry budget may take."""


async def settle(host: Host, attempt: Attempt, verdict: Verdict) -> None:
    """Carry a verdict out. Cancelled midway, the message comes again and its record is found."""
    match verdict:
        case Answer(outcome):
            await _answer(host, attempt, outcome)
        case Answered(stored):
            await _finish_found(host, attempt, stored)
        case Retry():
            await _retry(host, attempt, verdict)
        case HandBack(reason, delay_s, is_recorded):
            await _hand_back(host, attempt, reason, delay_s, is_recorded=is_recorded)
        case Park(waits):
            await _park(host, attempt, waits)
        case Parked():
            await ack(host.bus, attempt.delivery)
        case Superseded():
            attempt.slot.give()
            await wake(host.bus, attempt.identity)
            await ack(host.bus, attempt.delivery)
        case _:
            assert_never(verdict)


async def _answer(host: Host, attempt: Attempt, outcome: Outcome) -> None:
    metrics = attempt.metrics
    try:
        as_type = wire.content_type(attempt.delivery.headers.get(names.CONTENT_TYPE))
    except ContractError:
        as_type = "application/json"
    ttl_s = attempt.result_ttl_s(host.settings)

    def held() -> None:
        host.heartbeat.change(attempt.row, attempt.delivery, for_s=HOLD_S)

    began = time.perf_counter()
    taken = Taken(host.bus, attempt.identity, as_type, held=held)
    try:
        outcome = await taken.outcome(outcome, ttl_s=ttl_s)
        record = wire.encode(outcome, as_type)
        room = host.bus.nc.max_payload - RECORD_OVERHEAD_BYTES
        if len(record) > room:
            outcome = _too_large(outcome, f"record of {len(record)} bytes, sends included, exceeds {room} bytes")
            record = wire.encode(outcome, as_type)
        found = await commit(host.bus, attempt.identity, record, ttl_s=ttl_s, as_type=as_type, held=held)
    except (PublishRejected, ContractError) as error:
        refused = isinstance(error, PublishRejected)
        outcome = _too_large(outcome, f"the server refuses the record: {error}" if refused else str(error))
        record = wire.encode(outcome, as_type)
        found = await commit(host.bus, attempt.identity, record, ttl_s=ttl_s, as_type=as_type, held=held)
    took_s = time.perf_counter() - began
    if found is not None and found.data == record:
        # It is this very one, whose first answer was lost.
        found = None
    attempt.span.event("committed" if found is None else "another result stands")
    if taken.kept:
        await _keep_taken(host, taken, outcome, found, ttl_s=ttl_s, took_s=took_s)
    if found is not None:
        metrics.duplicates["commit"].inc()
        await _finish_found(host, attempt, found)
    else:
        host.answered.note(attempt.identity.capability, attempt.task, outcome.status, at=time.time())
        metrics.answered(outcome, commit_s=took_s, caller=attempt.task.caller)
        if outcome.status is Status.CANCELLED:
            await host.tell(EventKind.CANCELLED, attempt.identity)
        await host.events.ended(attempt.identity, attempt.task, attempt.capability.agent, outcome)
        await _finish(host, attempt, outcome, as_type)


async def _keep_taken(
    host: Host, taken: Taken, outcome: Outcome, found: Stored | None, *, ttl_s: float, took_s: float
) -> None:
    """See to what was stored beside a record: that it goes if another record stands, or stays as long as this one."""
    stands = outcome
    if found is not None:
        try:
            stands = read_outcome(found)
        except ContractError:
            # It may refer to what a newer peer of ours stored: that goes by its time.
            return
    await taken.remove(but=referred(stands))
    if took_s > SLACK_S / 2 and found is None and outcome.value_at is not None:
        # The commit was held, and the record's time began after the object's.
        await keep_for(host.bus, taken.task, outcome.value_at, ttl_s=ttl_s)


async def _finish_found(host: Host, attempt: Attempt, found: Stored) -> None:
    try:
        outcome = read_outcome(found)
    except NewerFormat:
        # What it sends is not ours to read: a newer peer relays it.
        await _hand_back(host, attempt, Reason.NEWER_FORMAT, host.settings.ack_wait_s, is_recorded=True)
    except ContractError as error:
        log.error("%s has a malformed result, which stands: %s", attempt.identity, error)
        await _pass_on(host, attempt, is_early=True)
        await ack(host.bus, attempt.delivery)
    else:
        await _finish(host, attempt, outcome, stored_type(found))


async def _finish(host: Host, attempt: Attempt, outcome: Outcome, as_type: ContentType) -> None:
    if outcome.sends:
        host.heartbeat.change(attempt.row, attempt.delivery, for_s=HOLD_S)
        repeated = await relay(host.bus, outcome, as_type=as_type)
        attempt.metrics.duplicates["submit"].inc(repeated)
        attempt.span.event("relayed", {"starling.sends": len(outcome.sends)})
    if outcome.status is Status.FAILED and outcome.failure is not None:
        ttl_s = host.settings.dead_letter_ttl_s
        if (kept := attempt.kept) is not None:
            host.heartbeat.change(attempt.row, attempt.delivery, for_s=HOLD_S)
            await keep_for(host.bus, payload_place(attempt.identity, kept), kept, ttl_s=ttl_s)
        if await bury(host.bus, attempt.identity, attempt.delivery, outcome.failure, ttl_s=ttl_s):
            attempt.metrics.dead_lettered(outcome.failure.kind)
            log.warning("%s is a dead letter: %s: %s", attempt.identity, outcome.failure.kind, outcome.failure.message)
            await host.tell(EventKind.DEAD_LETTERED, attempt.identity, outcome.failure.message)
    await _wake_parent(host, attempt)
    await _pass_on(host, attempt, is_early=outcome.is_early)
    await _tell_decisions(host, attempt, outcome.decisions)
    if outcome.status is not Status.FAILED and (kept := attempt.kept) is not None:
        # Nobody asks for it any more. Of a failed task it is the dead letter's.
        await remove(host.bus, payload_place(attempt.identity, kept), kept)
    await ack(host.bus, attempt.delivery)


async def _tell_decisions(host: Host, attempt: Attempt, decisions: Sequence[Decision]) -> None:
    """Have the stream of events keep each decision once, before the delivery is settled."""
    if decisions:
        host.heartbeat.change(attempt.row, attempt.delivery, for_s=HOLD_S)
        await host.events.decided(attempt.identity, decisions, attempt.capability.agent)


async def _wake_parent(host: Host, attempt: Attempt) -> None:
    """A parent that waits in memory hears the stored result itself; one that is parked is woken."""
    header = attempt.delivery.headers.get(names.TASK)
    if header is None or "is_awaited" not in header:
        return
    try:
        task = wire.decode(Task, header.encode())
    except ContractError:
        return
    *above, _ = ancestry(attempt.identity, task.lineage)
    if task.is_awaited and above:
        # It may have to wait for a run of the parent, which may need this very slot.
        attempt.slot.give()
        try:
            await wake(host.bus, above[-1])
        except PermissionDenied:
            # A parent that may not be woken from here never asked for this: whoever did named one that is not its own.
            log.warning("%s claims the parent %s, which this peer may not wake", attempt.identity, above[-1])


async def _pass_on(host: Host, attempt: Attempt, *, is_early: bool) -> None:
    """The next task of a line is woken, if this one stands in one."""
    if in_line(attempt.identity) is None:
        return
    host.heartbeat.change(attempt.row, attempt.delivery, for_s=HOLD_S)
    # As for a parent: the next one may need this very slot.
    attempt.slot.give()
    ttl_s = mark_ttl_s(host.settings, attempt.result_ttl_s(host.settings))
    await pass_on(host.bus, attempt.identity, is_early=is_early, mark=attempt.mark, ttl_s=ttl_s)


async def _park(host: Host, attempt: Attempt, waits: tuple[Wait, ...]) -> None:
    # First that this run is over, then the park, then its timer, then a last look: see `mesh.bus.parks`.
    host.heartbeat.change(attempt.row, attempt.delivery, for_s=HOLD_S)
    await _record_ended(host, attempt, AttemptEnded(how=Ended.PARKED, peer=host.peer, at=time.time()))
    await _tell_decisions(host, attempt, attempt.decisions)
    await keep_parked(host, attempt, waits)
    records = [record for wait in waits for record in wait.records]
    is_over = any(await read_many(host.bus, records)) or any(wait.due and wait.due <= time.time() for wait in waits)
    if not is_over:
        await ack(host.bus, attempt.delivery)
    elif attempt.is_wake:
        await _return(host, attempt, delay_s=0.0)
    else:
        await wake(host.bus, attempt.identity)
        await ack(host.bus, attempt.delivery)


async def keep_parked(host: Host, attempt: Attempt, waits: tuple[Wait, ...]) -> None:
    """Write a task's park and set its timer. Safe to repeat; its delivery stays to be settled."""
    now, keep_until = time.time(), attempt.keep_until(host.settings)
    attempt.has_records = True
    if not attempt.is_wake:
        if (kept := attempt.kept) is not None and keep_until > attempt.delivery.stored_at + host.settings.payload_ttl_s:
            await keep_for(host.bus, payload_place(attempt.identity, kept), kept, ttl_s=keep_until - now)
        ttl_s = max(1.0, keep_until - now)
        await park(host.bus, attempt.identity, attempt.delivery, keep_until=keep_until, ttl_s=ttl_s)
    limits = (attempt.task.deadline, keep_until)
    due = next_due(waits, now=now, again_s=host.settings.wake_again_s, limits=limits)
    await set_timer(host.bus, attempt.identity, due)
    attempt.metrics.parks.inc()
    await host.tell(EventKind.PARKED, attempt.identity)


async def _retry(host: Host, attempt: Attempt, retry: Retry) -> None:
    # The pause goes by a clock that nobody sets: the wall clock may be put right while its end is written.
    now, began, delay_s = time.time(), time.monotonic(), 0.0
    if not retry.is_throttled:
        limits = (attempt.runs_until(host.settings), attempt.task.deadline or math.inf)
        # A delay must not be what ends a task.
        most_s = max(0.0, DELAY_SHARE * (min(limits) - now - retry.after_s))
        delay_s = min(host.retries.take(began), most_s)
    pause_s = retry.after_s + delay_s
    end = AttemptEnded(
        how=Ended.HANDED_BACK if retry.is_throttled else Ended.FAILED,
        peer=host.peer,
        at=now,
        retry_at=now + pause_s,
        failure=retry.failure,
        is_throttled=retry.is_throttled,
    )
    await _record_ended(host, attempt, end)
    metrics = attempt.metrics
    (metrics.throttled if retry.is_throttled else metrics.retries).inc()
    metrics.retries_delayed.inc(delay_s > 0)
    await host.tell(EventKind.RETRIED, attempt.identity, retry.failure.message)
    await _return(host, attempt, delay_s=max(0.0, pause_s - (time.monotonic() - began)))


async def _hand_back(
    host: Host,
    attempt: Attempt,
    reason: Reason,
    delay_s: float,
    *,
    is_recorded: bool,
) -> None:
    if is_recorded:
        end = AttemptEnded(how=Ended.HANDED_BACK, peer=host.peer, at=time.time())
        await _record_ended(host, attempt, end)
        await host.tell(EventKind.HANDED_BACK, attempt.identity, reason)
    attempt.metrics.handed_back(reason)
    await _return(host, attempt, delay_s=delay_s)


async def _record_ended(host: Host, attempt: Attempt, end: AttemptEnded) -> None:
    end = msgspec.structs.replace(end, traceparent=attempt.span.traceparent) if attempt.span.headers else end
    ttl_s = attempt.ledger_ttl_s(host.settings)
    if attempt.decisions:
        end = msgspec.structs.replace(end, decisions=attempt.decisions)
    await record_ended(host.bus, attempt.identity, attempt.number, end, ttl_s=ttl_s)


async def _return(host: Host, attempt: Attempt, *, delay_s: float) -> None:
    # A heartbeat after the nak would put the delay off.
    host.heartbeat.silence(attempt.row)
    await host.heartbeat.quiet()
    await nak(host.bus, attempt.delivery, delay_s=delay_s)


def _too_large(outcome: Outcome, message: str) -> Outcome:
    return msgspec.structs.replace(
        outcome,
        status=Status.FAILED,
        value=msgspec.UNSET,
        value_at=None,
        sends=(),
        failure=Failure(kind=FailureKind.TOO_LARGE, message=message, attempts=outcome.attempt),
    )
